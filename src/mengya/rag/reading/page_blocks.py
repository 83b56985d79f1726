"""The elements of a web page as headings, paragraphs, lists and tables."""

import re
from typing import Any

from mengya.rag.reading.draft import Draft
from mengya.rag.reading.links import linked
from mengya.rag.reading.marks import lowered, raised, struck
from mengya.rag.reading.numerals import numeral

_INLINE = frozenset(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd label mark q rb ruby s samp small span "
    "strike strong sub sup time tt u var wbr nobr".split()
)
"""Elements that do not end a paragraph; an unknown one does not either if its name has a hyphen."""
_STRUCK = ("del", "s", "strike")
_BREAKS = re.compile(r"\s*\n\s*")
_FORMS = {"a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman"}
"""Of the numbers of a list; others are digits."""
_SPACES = re.compile(r"[ \t\r\n\f]+")


def add_blocks(draft: Draft, element: Any) -> None:
    blocks = _Blocks(draft)
    blocks.add(element)
    blocks.flush()


class _Blocks:
    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._line = ""
        """Of the paragraph that is being read."""

    def flush(self) -> None:
        self._draft.text(_BREAKS.sub("\n", self._line))
        self._line = ""

    def add(self, element: Any) -> None:
        self._line += _collapsed(element.text)
        for one in element:
            self._add_one(one)
            self._line += _collapsed(one.tail)

    def _add_one(self, one: Any) -> None:
        name = one.tag if isinstance(one.tag, str) else ""
        if name == "br":
            self._line += "\n"
        elif name == "img":
            self._line += _collapsed(one.get("alt"))
        elif name in ("rt", "rp", ""):
            pass  # how a character is read, beside it
        elif name == "a" and not any(map(_is_block, one.iterdescendants())):
            before, self._line = self._line, ""
            self.add(one)
            self._line = before + linked(self._line, one.get("href"))
        elif name in _INLINE or "-" in name:
            before, self._line = self._line, ""
            self.add(one)
            self._line = before + _marked(self._line, one)
        else:
            self.flush()
            self._add_block(one, name)
            self.flush()

    def _add_block(self, one: Any, name: str) -> None:
        if re.fullmatch("h[1-6]", name):
            self._draft.heading(inline(one), int(name[1]))
        elif name == "pre":
            for end in one.iter("br"):
                end.tail = f"\n{end.tail or ''}"
            self._draft.text(one.text_content())
        elif name in ("ul", "ol") and not any(True for _ in one.iter("table", "pre", "h1", "h2", "h3", "h4")):
            self._draft.text("\n".join(_items(one, 0)))
        elif name == "table" and _is_data(one):
            for caption in one.iter("caption"):
                self._draft.text(inline(caption))
            self._draft.table(_rows(one))
        else:
            self.add(one)


def _collapsed(text: str | None) -> str:
    return _SPACES.sub(" ", text or "")


def _is_block(element: Any) -> bool:
    name = element.tag if isinstance(element.tag, str) else "br"
    return not (name in _INLINE or name in ("br", "img", "rt", "rp") or "-" in name)


def inline(element: Any) -> str:
    """All text below, on lines that its blocks and breaks make."""
    return _BREAKS.sub("\n", _inside(element)).strip()


def _inside(element: Any) -> str:
    parts = [_collapsed(element.text)]
    for one in element:
        name = one.tag if isinstance(one.tag, str) else ""
        if name == "br":
            parts.append("\n")
        elif name == "img":
            parts.append(_collapsed(one.get("alt")))
        elif name not in ("rt", "rp", ""):
            around = "" if name in _INLINE or "-" in name else "\n"
            text = _marked(_inside(one), one)
            parts.append(around + linked(text, one.get("href") if name == "a" else None) + around)
        parts.append(_collapsed(one.tail))
    return "".join(parts)


def _marked(text: str, element: Any) -> str:
    """The text of an element with what its place and a line through it mean."""
    if element.tag in ("sup", "sub"):
        return raised(text) if element.tag == "sup" else lowered(text)
    return struck(text) if element.tag in _STRUCK or "line-through" in (element.get("style") or "").lower() else text


def _items(element: Any, depth: int) -> list[str]:
    """A line an item, those of lists inside it behind."""
    lines = [text] if (text := _collapsed(element.text).strip()) else []
    step = -1 if element.get("reversed") is not None else 1
    number = _whole(element.get("start"), sum(item.tag == "li" for item in element) if step < 0 else 1)
    for item in element:
        if item.tag in ("ul", "ol"):
            lines += _items(item, depth + 1)
        elif item.tag == "li":
            inside = [one for one in item if one.tag in ("ul", "ol")]
            deeper = [line for one in inside for line in _items(one, depth + 1)]
            for one in inside:
                one.drop_tree()
            number = _whole(item.get("value"), number)
            mark = f"{numeral(number, _FORMS.get(element.get('type') or '', ''))}. " if element.tag == "ol" else "- "
            number += step
            if text := inline(item):
                lines.append("  " * depth + mark + text)
            lines += deeper
        elif isinstance(item.tag, str) and (text := inline(item)):
            lines.append("  " * depth + text)
        if text := _collapsed(item.tail).strip():
            lines.append("  " * depth + text)
    return lines


def _whole(text: str | None, usual: int) -> int:
    return int(text) if text and re.fullmatch(r"\s*-?[0-9]{1,9}\s*", text) else usual


def _is_data(table: Any) -> bool:
    """A table of data; others only place things on the page."""
    if any(True for _ in table.iterdescendants("table", "h1", "h2")):
        return False
    rows = list(table.iter("tr"))
    return any(True for _ in table.iter("th")) or (len(rows) > 1 and max(len(row) for row in rows) > 1)


def _rows(table: Any) -> list[list[str]]:
    """A cell over several rows is repeated in each; one over several columns leaves empty ones."""
    rows: list[list[str]] = []
    below: dict[int, tuple[int, str]] = {}  # column -> (rows to come, text) of cells that reach further down
    for row in table.iter("tr"):
        cells: list[str] = []
        for cell in [one for one in row if one.tag in ("td", "th")]:
            _fill(cells, below)
            text = inline(cell)
            texts = [text] + [""] * (_span(cell, "colspan") - 1)
            if (span := _span(cell, "rowspan")) > 1:
                below |= {len(cells) + i: (span - 1, one) for i, one in enumerate(texts)}
            cells += texts
        _fill(cells, below)
        rows.append(cells)
    return rows


def _fill(cells: list[str], below: dict[int, tuple[int, str]]) -> None:
    while len(cells) in below:
        column = len(cells)
        left, text = below.pop(column)
        if left > 1:
            below[column] = left - 1, text
        cells.append(text)


def _span(cell: Any, name: str) -> int:
    return max(1, min(_whole(cell.get(name), 1), 1000))
