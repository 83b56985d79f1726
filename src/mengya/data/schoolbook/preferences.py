"""Preference pairs: honesty about invented names, without unlearning the facts and the sums, and answers that fit."""

import random
from typing import Any

from mengya.data.schoolbook import arithmetic, topics, unknown
from mengya.data.schoolbook.tables import Fact, Relation
from mengya.data.schoolbook.talk import answer
from mengya.data.schoolbook.topics import load_topics


def preferences(relations: list[Relation], seed: int, count: int, held_out: bool) -> list[dict[str, Any]]:
    """``count`` pairs; held-out ones use held-out names, phrasings and operands."""
    rng = random.Random(f"{seed}/preferences/{held_out}")
    shares = {_honest: 0.30, _right_fact: 0.25, _addition: 0.15, _known: 0.15, _fitting: 0.15}
    rows = [make(rng, relations, held_out) for make, share in shares.items() for _ in range(round(count * share))]
    rng.shuffle(rows)
    for row in rows:
        if rng.random() < 0.1:  # both shapes that a preference file may have
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    return rows


def _row(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _honest(rng: random.Random, relations: list[Relation], held_out: bool) -> dict[str, Any]:
    """An honest "I do not know" against a confident invention of the right type."""
    relation, name, question = unknown.ask(rng, relations, held_out)
    invented = rng.choice(relation.facts).answer
    claim = Fact(relation.name, name, (invented,)).fill(rng.choice(relation.reply))
    return _row(question, rng.choice(unknown.HONEST), claim)


def _pick(rng: random.Random, relations: list[Relation], held_out: bool, choices: int) -> tuple[Relation, Fact, str]:
    """A fact, drawn evenly over the facts of the relations that have enough of them, and a question for it."""
    relation, fact = rng.choice([(r, f) for r in relations for f in r.facts if len(r.facts) >= choices])
    return relation, fact, fact.fill(rng.choice(relation.held if held_out else relation.train))


def _right_fact(rng: random.Random, relations: list[Relation], held_out: bool) -> dict[str, Any]:
    """The right answer against another fact's answer, in the same words."""
    relation, fact, question = _pick(rng, relations, held_out, choices=4)
    right = {text for f in relation.facts if f.subject == fact.subject for text in f.answers}
    wrong = [f for f in relation.facts if f.answer not in right and f.answer != fact.subject]
    alike = [f for f in wrong if f.attributes == fact.attributes]
    other = rng.choice(alike or wrong).answer
    reply = rng.choice(relation.reply)
    return _row(question, fact.fill(reply), fact.fill(reply, other))


def _addition(rng: random.Random, relations: list[Relation], held_out: bool) -> dict[str, Any]:
    """A worked addition against the same one with the carry forgotten or invented."""
    a, b = rng.choice(arithmetic.HELD_PAIRS if held_out else arithmetic.TRAIN_PAIRS)
    return _row(arithmetic.question(rng, a, b), arithmetic.worked(a, b), arithmetic.wrong(a, b))


def _known(rng: random.Random, relations: list[Relation], held_out: bool) -> dict[str, Any]:
    """A taught fact against "I do not know", so that honesty does not become silence."""
    relation, fact, question = _pick(rng, [r for r in relations if r.lang == "zh"], held_out, choices=1)
    return _row(question, answer(rng, relation, fact), rng.choice(unknown.HONEST))


def _fitting(rng: random.Random, relations: list[Relation], held_out: bool) -> dict[str, Any]:
    """An answer to what people say first against the answer to something else in the same language."""
    asked = [t for t in load_topics().values() if t.held and t.kind != "story"]
    topic = rng.choice(asked)
    other = rng.choice([t for t in asked if t.lang == topic.lang and t.kind != topic.kind])
    prompt = rng.choice(topic.held) if held_out else topic.ask(rng)
    return _row(prompt, topics.answer(rng, topic), topics.answer(rng, other))
