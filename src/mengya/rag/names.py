"""What a question names: persons, places, works, numbers. Passages that name none of it are about something else, even
where they share other words with the question."""

import re
from collections.abc import Iterator, Sequence

from mengya.rag.terms import asks, normal, tagged

_NAMES = frozenset(("nr", "ns", "nt", "nz", "eng"))
"""Tags of the segmenter: persons, places, organisations, other names, words of Latin letters."""
_ORDINARY = frozenset("城市 大桥 英语 东西".split())
"""Words that the segmenter takes for names."""
_GRAMMAR = re.compile("[是的了有在这那哪谁几么吗呢说以和与]")
"""In a word that no dictionary has, these are words by themselves: it was cut wrongly."""
_EDGES = "当要能正过指打找叫到买卖造由被把请会可就都也不来去做为给让"
"""At the begin or the end of such a word, these belong to what stands beside it."""
_QUOTED = re.compile('[“「『《〈"]([^“”「」『』《》〈〉"]{1,30})[”」』》〉"]')
_SHORT = re.compile(r"\d{1,2}")
"""Numbers that may as well be written in words."""
_EXACT = re.compile(r"[\da-z]")
_JOINT = re.compile(r"(?<=[a-z0-9])-(?=[a-z0-9])|(?<=[a-z])[ ./]+(?=[a-z0-9])|(?<=[0-9])[ ./]+(?=[a-z])")
"""What some write in a name and others do not: Wi-Fi, 175 cm, No.5, GB/T 19001."""


class Names:
    """What a question names: what stands in quotation marks, if anything does, or else names that the segmenter knows,
    and all words that its dictionary does not have."""

    def __init__(self, question: str):
        text = normal(question).text
        self._quoted = {quoted.strip() for quoted in _QUOTED.findall(text)}
        self.all = self._quoted or set(_names(text))

    def are_in(self, texts: Sequence[str]) -> bool:
        """Whether one of the texts has something of that, or there is nothing."""
        text = normal("\n".join(texts)).text
        stands = str.__contains__ if self._quoted else _stands
        return not self.all or any(stands(text, name) for name in self.all)


def _names(text: str) -> Iterator[str]:
    """Of a normalised text; names that follow each other are one, which the segmenter has cut."""
    begin = end = place = 0
    for word, tag, known in [*tagged(text), ("", "", True)]:
        span = _span(text, place, word, tag, known)
        place += len(word)
        if span and begin < end and span[0] <= end and not _EXACT.search(text[begin : span[1]]):
            end = span[1]
            continue
        if end - begin > 1 or _EXACT.search(text[begin:end]):
            yield text[begin:end]
        begin, end = span or (place, place)


def _span(text: str, begin: int, word: str, tag: str, known: bool) -> tuple[int, int] | None:
    """Where the name stands that a word is, or is a part of."""
    if asks(word) or word in _ORDINARY or _SHORT.fullmatch(word) or not any(map(str.isalnum, word)):
        return None
    end = begin + len(word)
    if _EXACT.search(word) or (known and tag in _NAMES):
        return begin, end
    if known or (tag not in _NAMES and _GRAMMAR.search(word)):
        return None
    left = len(word) - len(word.lstrip(_EDGES))
    right = len(word) - len(word.rstrip(_EDGES))
    if left == len(word):
        return None
    begin, end = begin + left, end - right
    if end - begin == 1:  # the other half of the name is in the next word, or in the one before
        end += left > 0 and _goes_on(text[end : end + 1])
        begin -= right > 0 and _goes_on(text[max(begin - 1, 0) : begin])
    return begin, end


def _goes_on(character: str) -> bool:
    return character.isalpha() and not (character in _EDGES or _GRAMMAR.match(character))


def _stands(text: str, name: str) -> bool:
    """Two characters that stand together are enough of a longer one: the segmenter may have cut it wrongly."""
    if _EXACT.search(name):
        return name in text or _JOINT.sub("", name) in _JOINT.sub("", text)
    if len(name) < 3:
        return name in text
    return any(name[i : i + 2] in text for i in range(len(name) - 1))
