"""The held-out questions.

- ``fact``: a taught fact asked in words that training never uses for it.
- ``addition``: a pair of two-digit operands that training never adds, in training words. An evaluator may also take the
  last number of a response.
- ``unknown``: an invented name that training never mentions. All of ``accept`` contain ``answer`` ("不知道").

Every string of ``accept`` is right.
"""

import random
from typing import Any

from mengya.data.schoolbook import arithmetic, unknown
from mengya.data.schoolbook.tables import Relation

FACTS, ADDITIONS, UNKNOWNS = 400, 200, 60


def questions(relations: list[Relation], seed: int) -> list[dict[str, Any]]:
    """All held-out questions: facts spread evenly over the relations, then additions, then invented names."""
    rng = random.Random(f"{seed}/questions")
    return [*_facts(rng, relations), *_additions(rng), *_unknowns(rng, relations)]


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
        rows.append(_question("addition", f"{a}+{b}", arithmetic.question(rng, a, b), total, accept))
    return rows


def _unknowns(rng: random.Random, relations: list[Relation]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < UNKNOWNS:
        relation, name, prompt = unknown.ask(rng, relations, held_out=True)
        rows[name] = _question("unknown", f"{relation.name}/{name}", prompt, "不知道", list(unknown.HONEST))
    return list(rows.values())
