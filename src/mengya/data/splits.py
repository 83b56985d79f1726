"""What is held out: decided by content alone, and never nothing where something can be."""

import re
from array import array
from hashlib import blake2b


def content_hash(text: str) -> bytes:
    """16 bytes of BLAKE2b over the text with every run of white space squeezed to one space."""
    return blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def is_heldout(content: bytes, fraction: float) -> bool:
    """Whether the document with this `content_hash` is held out. Depends on the text and `fraction` alone, so that
    adding or reordering files moves no document across, and a larger fraction holds out a superset."""
    assert 0.0 <= fraction <= 1.0, fraction
    return _number(content) < fraction * 2.0**64


def _number(content: bytes) -> int:
    return int.from_bytes(content[:8], "big")


_ENDS = (re.compile(r"\n"), re.compile(r"[。！？!?；;…][”’」』）)\"']*"), re.compile(r"\s"))


def cut_tail(text: str, fraction: float) -> tuple[str, str]:
    """A text in two parts, the second about `fraction` of it: cut behind a line, a sentence or a word near there."""
    wanted = max(1, round(len(text) * fraction))
    place = max(0, len(text) - wanted)
    for ends in _ENDS:
        found = [match.end() for match in ends.finditer(text, max(0, place - wanted), place + wanted // 2)]
        if found:
            place = min(found, key=lambda end: abs(end - place))
            break
    return text[:place].rstrip(), text[place:].strip()


class Splitter:
    """Divides items into those to train on and those held out, by the hash of what must not stand on both sides.

    If all items would fall on one side, as happens with few of them, the hash that is nearest to the other side goes
    there. With `fraction` 0, or if all hashes are the same, all items are trained on.
    """

    def __init__(self, fraction: float):
        self._fraction = fraction
        self._hashes = array("Q")
        self.heldout = 0
        """Items that are held out by their hash."""

    def add(self, content: bytes) -> bool:
        """Whether the next item is held out by its hash."""
        held = is_heldout(content, self._fraction)
        self._hashes.append(_number(content))
        self.heldout += held
        return held

    def corrected(self) -> list[bool] | None:
        """Whether each item is held out, if all had fallen on one side; None if what `add` said stands."""
        items = len(self._hashes)
        if not items or not self._fraction or 0 < self.heldout < items:
            return None
        lowest, highest = min(self._hashes), max(self._hashes)
        if lowest == highest:
            return [False] * items if self.heldout else None
        border = highest if self.heldout else lowest + 1
        return [number < border for number in self._hashes]
