"""The held-out questions.

- ``fact``: a taught fact asked in words that training never uses for it.
- ``addition``: a pair of two-digit operands that training never adds, in training words. An evaluator may also take the
  last number of a response.
- ``unknown``: an invented name that training never mentions. All of ``accept`` contain ``answer`` ("不知道").
- ``identity``: who it is, what it is and who made it, in words that training never uses.
- ``first``: what people type first, in words that training never uses, and names that it never mentions.

Every string of ``accept`` is right; of the last two kinds, an answer that holds one of them, or is of the kind
``expect``.
"""

import random
from typing import Any

from mengya.data.schoolbook import arithmetic, passages, topics, unknown
from mengya.data.schoolbook.tables import Relation

FACTS, ADDITIONS, UNKNOWNS, POEM_LINES, NAMES = 400, 200, 60, 20, 25
ITSELF = {"name": "萌芽", "maker": "萌芽项目", "model": "小语言模型"}
"""The kinds of answer that are about itself, with one that is right."""
ABOUT = {"about_name": "name", "about_english": "name", "about_kind": "model", "about_maker": "maker"}


def questions(relations: list[Relation], seed: int) -> list[dict[str, Any]]:
    """All held-out questions: facts spread evenly over the relations, additions, invented names, first questions."""
    rng = random.Random(f"{seed}/questions")
    known = [*_facts(rng, relations), *_additions(rng), *_unknowns(rng, relations)]
    first = [*_identity(relations), *_first(), *_poem_lines(rng), *_names(rng)]
    return [*known, *first, *passages.questions(rng, relations)]


def _question(kind: str, name: str, prompt: str, answer: str, accept: list[str]) -> dict[str, Any]:
    return {"kind": kind, "id": f"{kind}/{name}", "prompt": prompt, "answer": answer, "accept": accept}


def _facts(rng: random.Random, relations: list[Relation]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    queues = [(relation, rng.sample(relation.facts, len(relation.facts))) for relation in relations]
    turn = 0
    while len(rows) < FACTS and any(queue for _, queue in queues):
        for relation, queue in queues:
            if queue and len(rows) < FACTS:
                fact = queue.pop()
                prompt = fact.fill(relation.held[turn % len(relation.held)])
                rows.append(_question("fact", fact.id, prompt, fact.answer, relation.accept(fact)))
        turn += 1
    return rows


def _additions(rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for pair in rng.sample(arithmetic.HELD_PAIRS, ADDITIONS):
        a, b = rng.sample(pair, 2)
        total = str(a + b)
        accept = [total, f"{a}+{b}={total}", f"{a}+{b}={total}。", arithmetic.worked(a, b)]
        rows.append(_question("addition", f"{a}+{b}", arithmetic.question(rng, a, b, problems=0.25), total, accept))
    return rows


def _unknowns(rng: random.Random, relations: list[Relation]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < UNKNOWNS:
        relation, name, prompt = unknown.ask(rng, relations, held_out=True)
        rows[name] = _question("unknown", f"{relation.name}/{name}", prompt, "不知道", list(unknown.HONEST))
    return list(rows.values())


def _expecting(kind: str, name: str, prompt: str, **right: Any) -> dict[str, Any]:
    return {"kind": kind, "id": f"{kind}/{name}", "prompt": prompt, **right}


def _identity(relations: list[Relation]) -> list[dict[str, Any]]:
    asked = [(t.name, prompt, t.kind) for t in topics.load_topics().values() if t.kind in ITSELF for prompt in t.held]
    asked += [(r.name, held, ABOUT[r.name]) for r in relations if r.name in ABOUT for held in r.phrases["held"]]
    return [
        _expecting("identity", f"{name}/{i}", prompt, expect=kind, answer=ITSELF[kind])
        for i, (name, prompt, kind) in enumerate(asked)
    ]


def _first() -> list[dict[str, Any]]:
    rng, rows = random.Random("answers"), []
    for topic in topics.load_topics().values():
        for i, prompt in enumerate(topic.held if topic.kind not in ITSELF else []):
            name = f"{topic.name}/{i}"
            if topic.kind == "poem":
                couplets = ["".join(pair) for poem in topics.load_poems() for pair in poem.following()]
                rows.append(_expecting("first", name, prompt, accept=couplets))
            else:
                rows.append(_expecting("first", name, prompt, expect=topic.kind, answer=topics.answer(rng, topic)))
    return rows


def _poem_lines(rng: random.Random) -> list[dict[str, Any]]:
    pairs = [(poem.title, *pair) for poem in topics.load_poems() for pair in poem.following()]
    held = topics.load_poem_questions()["held"]
    return [
        _expecting("first", f"{title}/{line}", rng.choice(held).replace("{line}", line), accept=[following])
        for title, line, following in rng.sample(pairs, POEM_LINES)
    ]


def _names(rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for names in topics.load_names():
        for name in rng.sample([name for name in names.names["zh"] if topics.is_held_out(name)], NAMES):
            prompt = rng.choice(names.held).replace("{s}", name)
            rows.append(_expecting("first", f"{names.kind}/{name}", prompt, expect="ignorance", answer="我不知道。"))
        for name in filter(topics.is_held_out, names.names["en"]):
            prompt = topics.draw(rng, names.ask["en"]).replace("{s}", name)
            rows.append(
                _expecting("first", f"{names.kind}/{name}", prompt, expect="ignorance", answer="I do not know.")
            )
    return rows
