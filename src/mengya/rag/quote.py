"""Which words of a passage answer a question, or hold what an answer says."""

from collections.abc import Collection, Sequence

from mengya.rag.names import Names
from mengya.rag.numbers import numbers
from mengya.rag.passages import sentences
from mengya.rag.retrieve import content
from mengya.rag.terms import is_common, normal, terms_of

_QUOTED = 0.3
"""Part of a question's words that a passage must have to be quoted."""


def words_of(text: str) -> set[str]:
    """Those that say what it is about. Single characters of Han that stand beside each other count in pairs, as they
    may be a word that the dictionary does not have."""
    terms = terms_of(normal(text).text)
    words = content(terms)
    single = {term.begin for term in words if term.end - term.begin == 1 and not term.text.isascii()}
    pairs = [term for term in terms if not term.whole and {term.begin, term.begin + 1} <= single]
    paired = {place for pair in pairs for place in range(pair.begin, pair.end)}
    return {pair.text for pair in pairs} | {term.text for term in words if not (single & paired & {term.begin})}


def found_in(words: Collection[str], text: str) -> set[str]:
    """Those of the words that stand in a text."""
    plain = normal(text).text
    there = {term.text for term in terms_of(plain)} | set(numbers(plain))

    def stands(word: str) -> bool:
        return word in there or (not word.isascii() and (word in plain or not there.isdisjoint(numbers(word))))

    return {word for word in words if stands(word)}


def coverage(words: Collection[str], text: str) -> float:
    """The part of the words that stand in a text, by how much they say: longer ones more, and those that stand in any
    text nothing, if there are others."""
    telling = {word for word in words if not is_common(word)} or set(words)
    whole = sum(map(_weight, telling))
    return sum(map(_weight, found_in(telling, text))) / whole if whole else 0.0


def concern(queries: Sequence[str], texts: Sequence[str]) -> float:
    """How much one of the texts has of what one of the queries says, from 0 to 1."""
    words = [words_of(query) for query in queries]
    return max((coverage(each, text) for each in words for text in texts), default=0.0)


def is_quotable(queries: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether one of the texts has enough of what one of the queries says, and something that the first one names."""
    return concern(queries, texts) >= _QUOTED and Names(queries[0]).are_in(texts)


def _weight(word: str) -> int:
    return min(len(word), 2) if word.isascii() else len(word)


def best_sentence(words: Collection[str], text: str) -> tuple[int, int, int]:
    """Where the sentence with most of the words begins and ends in a text, and how many characters they have."""
    best = (0, len(text), 0)
    for begin, end in sentences(text):
        score = sum(map(len, found_in(words, text[begin:end])))
        if score > best[2]:
            best = (begin, end, score)
    return best


def best_of(words: Collection[str], texts: Sequence[str]) -> tuple[int, int, int]:
    """(which text, begin, end) of the sentence with most of the words, the earlier text first."""
    found = [best_sentence(words, text) for text in texts]
    best = max(range(len(texts)), key=lambda number: found[number][2])
    return best, *found[best][:2]


def excerpt(words: Collection[str], text: str, size: int) -> tuple[int, int]:
    """Where the sentences around the best one stand that have up to `size` characters together."""
    if len(text) <= size:
        return 0, len(text)
    begin, end, _ = best_sentence(words, text)
    parts = sentences(text)
    first = last = next((n for n, part in enumerate(parts) if part[0] == begin), 0)
    begin, end = parts[first] if parts else (0, size)
    while True:  # what follows explains more than what stands before
        if last + 1 < len(parts) and parts[last + 1][1] - begin <= size:
            last += 1
        elif first and end - parts[first - 1][0] <= size:
            first -= 1
        else:
            return begin, min(end, begin + size)
        begin, end = parts[first][0], parts[last][1]


def is_supported(answer: str, question: str, passages: str, least: float = 0.5) -> bool:
    """Whether what an answer says stands in the passages: every number of it, and at least this part of its words. An
    answer in another script than theirs cannot be compared, and passes."""
    words = words_of(answer)
    if not words or _is_latin(answer) != _is_latin(passages):
        return bool(words)
    there = found_in(words, f"{passages}\n{question}")
    numbers = {word for word in words if word.isdecimal()}
    return numbers <= there and len(there) >= least * len(words)


def _is_latin(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return 2 * sum(character.isascii() for character in letters) > len(letters)
