"""Links of Word files: elements, and fields, whose parts stand beside each other in a paragraph."""

import re
from typing import Any

from mengya.rag.reading.links import linked
from mengya.rag.reading.office import attribute

_BEGIN, _MIDDLE, _END = "\ufdd0", "\ufdd1", "\ufdd2"
"""Characters that no text has, around the words and the address of a field."""
_FIELD = re.compile(f"{_BEGIN}([^{_BEGIN}{_MIDDLE}{_END}]*){_MIDDLE}([^{_BEGIN}{_MIDDLE}{_END}]*){_END}")
_TARGET = re.compile(r'^\s*HYPERLINK\s+"([^"]+)"', re.IGNORECASE)


def target_of(instruction: str) -> str:
    """Of a field; "" if it is no link to elsewhere."""
    found = _TARGET.match(instruction)
    return found[1] if found else ""


class Fields:
    """Those that are open, one inside the other."""

    def __init__(self) -> None:
        self._open: list[str] = []
        """The instruction of each."""

    def instruct(self, text: str) -> None:
        if self._open:
            self._open[-1] += text

    def mark(self, character: Any) -> str:
        """Of an fldChar, for the text of its paragraph."""
        kind = attribute(character, "fldCharType")
        if kind == "begin":
            self._open.append("")
            return ""
        target = target_of(self._open[-1]) if self._open else ""
        if kind == "end" and self._open:
            self._open.pop()
            return f"{_MIDDLE}{target}{_END}" if target else ""
        return _BEGIN if target else ""


def without_marks(text: str) -> str:
    """The text of a paragraph, its links written out."""
    text = _FIELD.sub(lambda field: linked(field[1], field[2]), text)
    return re.sub(f"{_MIDDLE}[^{_END}]*{_END}|[{_BEGIN}{_MIDDLE}{_END}]", "", text)
