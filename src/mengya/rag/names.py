"""What a question names: persons, places, works, numbers. Passages that name none of it are about something else, even
where they share other words with the question."""

import re
from collections.abc import Sequence

from mengya.rag.terms import asks, normal, tagged

_NAMES = frozenset(("nr", "ns", "nt", "nz", "eng"))
"""Tags of the segmenter: persons, places, organisations, other names, words of Latin letters."""
_ORDINARY = frozenset("城市 大桥 英语 东西".split())
"""Words that the segmenter takes for names."""
_GRAMMAR = re.compile("[是的了有在这那哪谁几么吗呢说以和与]")
"""In a word that no dictionary has, these are words by themselves: it was cut wrongly."""
_SHORT = re.compile(r"\d{1,2}")
"""Numbers that may as well be written in words."""
_EXACT = re.compile(r"[\da-z]")


def names_of(question: str) -> set[str]:
    """Words that stand for a single thing. Among them are all that the segmenter's dictionary does not have."""
    return {
        word
        for word, tag, known in tagged(normal(question).text)
        if (tag in _NAMES or not (known or _GRAMMAR.search(word)) or _EXACT.search(word))
        and any(character.isalnum() for character in word)
        and not (asks(word) or word in _ORDINARY or _SHORT.fullmatch(word))
    }


def is_named(question: str, texts: Sequence[str]) -> bool:
    """Whether one of the texts has something that the question names, or it names nothing."""
    names, told = names_of(question), normal("\n".join(texts)).text
    return not names or any(_stands(name, told) for name in names)


def _stands(name: str, text: str) -> bool:
    """Two characters that stand together are enough of a longer one: the segmenter may have cut it wrongly."""
    if len(name) < 3 or _EXACT.search(name):
        return name in text
    return any(name[i : i + 2] in text for i in range(len(name) - 1))
