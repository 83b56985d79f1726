"""Finding passages: by their words (BM25), by vectors where there are some, and the ranks of both put together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mengya.rag.numbers import found, numbers
from mengya.rag.store import Embedder, KnowledgeBase, StoredPassage
from mengya.rag.terms import Term, asks, normal, terms_of

_CANDIDATES = 50
"""Passages of each ranking that are put together, and ranked again."""
_RANK = 60
"""Added to a rank before it is inverted (Cormack, Clarke and Büttcher 2009)."""
_LONGEST_QUERY = 2000
"""Characters of a query that are searched for."""

Rerank = Callable[[str, Sequence[str]], Sequence[float]]
"""(question, passages) -> a score for each; higher is better."""


@dataclass(frozen=True)
class Hit:
    stored: StoredPassage
    score: float
    """Higher is better; comparable within one search."""
    alike: float = 0.0
    """The cosine of its vector and of the nearest query's; 0 where it has none."""


@dataclass(frozen=True)
class Retriever:
    """How a base is searched."""

    embedder: Embedder | None = None
    """None: by words alone."""
    rerank: Rerank | None = None

    def check(self, base: KnowledgeBase) -> None:
        """UserError if the base has vectors of another embedder."""
        if self.embedder is not None:
            base.check(self.embedder)

    def find(self, base: KnowledgeBase, queries: Sequence[str], limit: int = 5) -> list[Hit]:
        """The best passages, the best first. The first query is the question; others say it in other words. UserError
        if the base has vectors of another embedder."""
        self.check(base)
        rankings = [base.search(found, _CANDIDATES) for query in queries if (found := expression(query))]
        near = _by_vectors(base, self.embedder, queries) if self.embedder is not None else []
        rankings += near
        alike: dict[int, float] = {}
        for number, cosine in (pair for ranking in near for pair in ranking):
            alike[number] = max(cosine, alike.get(number, -1.0))
        alone = len(rankings) == 1 and self.embedder is None
        scores = dict(rankings[0]) if alone else _fused(rankings)
        best = sorted(scores, key=lambda number: (-scores[number], number))[
            : max(limit, (self.rerank and _CANDIDATES) or 0)
        ]
        hits = [Hit(stored, scores[stored.id], alike.get(stored.id, 0.0)) for stored in base.passages(best)]
        if self.rerank is not None and hits:
            again = self.rerank(queries[0], [hit.stored.passage.text for hit in hits])
            hits = [replace(hit, score=float(score)) for hit, score in zip(hits, again, strict=True)]
            hits.sort(key=lambda hit: -hit.score)
        return hits[:limit]


def expression(query: str) -> str:
    """What FTS5 is asked for a query in anybody's words: any of its terms, each in quotation marks. Empty for a query
    without letters, digits or symbols."""
    plain = normal(query[:_LONGEST_QUERY]).text
    terms = terms_of(plain)
    words = content(terms)
    asked = {place for term in terms if term.whole and term not in words for place in range(term.begin, term.end)}
    numerals = {place for each in found(plain) for place in range(each.begin, each.end) if each.end - each.begin > 1}
    asked |= numerals  # a part of a number says nothing
    pairs = [t for t in terms if not t.whole and len(t.text) > 1 and asked.isdisjoint(range(t.begin, t.end))]
    # A character that is a word by itself stands in thousands of passages; in a pair it says more, and costs less.
    paired = {place for pair in pairs for place in range(pair.begin, pair.end)}
    whole = [term.text for term in words if term.end - term.begin > 1 or term.begin not in paired | numerals]
    whole += numbers(plain)
    parts = [f"{column} : ({_any(whole)})" for column in ("words", "title") if whole]
    if pairs:
        parts.append(f"grams : ({_any(pair.text for pair in pairs)})")
    elif whole and all(len(text) == 1 for text in whole):
        parts.append(f"grams : ({_any(whole, '*')})")
    return " OR ".join(f"({part})" for part in parts)


def content(terms: Sequence[Term]) -> list[Term]:
    """The words among the terms that say what is looked for; all words if none does."""
    words = [term for term in terms if term.whole]
    return [term for term in words if not asks(term.text)] or words


def _any(texts: Iterable[str], behind: str = "") -> str:
    quoted = (text.replace('"', '""') for text in dict.fromkeys(texts))
    return " OR ".join(f'"{text}"{behind}' for text in quoted)


def _by_vectors(base: KnowledgeBase, embedder: Embedder, queries: Sequence[str]) -> list[list[tuple[int, float]]]:
    vectors = base.vectors()
    if not len(vectors.passages):
        return []
    scores = embedder.embed(queries) @ vectors.matrix.T
    best = np.argsort(-scores, axis=1)[:, :_CANDIDATES]
    return [[(int(vectors.passages[n]), float(row[n])) for n in ranks] for row, ranks in zip(scores, best, strict=True)]


def _fused(rankings: Sequence[Sequence[tuple[int, float]]]) -> dict[int, float]:
    """Passage -> score: the sum of its reciprocal ranks."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (number, _) in enumerate(ranking, 1):
            scores[number] = scores.get(number, 0.0) + 1 / (_RANK + rank)
    return scores
