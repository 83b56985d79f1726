"""Excel files: a page and a table a sheet, with numbers as Excel shows them."""

import re
from collections import defaultdict
from typing import Any

from mengya.rag.reading.draft import Draft, Source, State
from mengya.rag.reading.office import Parts, attribute, child, tag
from mengya.rag.reading.sheet_formats import shown

Cells = dict[int, dict[int, str]]
"""Row -> column -> text, both from 1; only those with text."""


def read(source: Source, draft: Draft) -> None:
    parts = Parts(source.path)
    book = parts.xml(parts.main)
    relations = parts.relations(parts.main)
    reader = _Reader(parts, book)
    sheets = [one for one in child(book, "sheets") if tag(one) == "sheet"]
    for number, sheet in enumerate(sheets[: source.limits.pages], 1):
        name = attribute(sheet, "name")
        kind, part = relations.get(_relation(sheet), ("", ""))
        notes = ["hidden sheet"] if attribute(sheet, "state", "visible") != "visible" else []
        before = len(draft.blocks)
        if kind == "worksheet":
            cells, formulas = reader.cells(part)
            texts = reader.texts(part)
            if formulas:
                notes.append(f"{formulas} formulas without a stored result; open the file in Excel and save it")
            if cells or texts:
                draft.heading(name, 1, number)
            _add(draft, cells, number)
            for text in texts:
                draft.text(text, number)
        else:
            notes.append("a chart or a sheet of macros")
        state: State = "text" if len(draft.blocks) > before else "blank" if kind == "worksheet" else "unread"
        draft.page(number, state, name, "; ".join(notes))
        source.progress(number, len(sheets))
    if len(sheets) > source.limits.pages:
        draft.note(f"it has {len(sheets):,} sheets; only the first {source.limits.pages:,} were read")


def _relation(sheet: Any) -> str:
    """Its r:id, which is not its id."""
    return next((text for key, text in sheet.attrib.items() if key.startswith("{") and key.endswith("}id")), "")


class _Reader:
    def __init__(self, parts: Parts, book: Any) -> None:
        self._parts = parts
        properties = child(book, "workbookPr")
        self._from_1904 = properties is not None and attribute(properties, "date1904") in ("1", "true", "on")
        self._strings = [
            _text(element) for name in parts.related(parts.main, "sharedStrings") for element in parts.each(name, "si")
        ]
        self._formats: list[tuple[int, str | None]] = []
        """Of each style of cells: the id of its format of numbers, and the format where the file has it."""
        for name in parts.related(parts.main, "styles"):
            root = parts.xml(name)
            own = {
                int(attribute(one, "numFmtId", "0")): attribute(one, "formatCode") for one in _children(root, "numFmts")
            }
            ids = [int(attribute(one, "numFmtId", "0")) for one in _children(root, "cellXfs")]
            self._formats = [(number, own.get(number)) for number in ids]

    def cells(self, part: str) -> tuple[Cells, int]:
        """Of a sheet, and how many of its formulas have no stored result."""
        cells: Cells = defaultdict(dict)
        formulas, number = 0, 0
        for row in self._parts.each(part, "row"):
            number, column = int(attribute(row, "r", str(number + 1))), 0
            for cell in row:
                column = _column(attribute(cell, "r")) or column + 1
                text = self._shown(cell)
                formulas += text is None
                if text and text.strip():
                    cells[number][column] = text
        for merge in self._parts.each(part, "mergeCell"):
            _repeat(cells, attribute(merge, "ref"))
        return cells, formulas

    def _shown(self, cell: Any) -> str | None:
        """None: a formula without a result."""
        kind, raw = attribute(cell, "t", "n"), child(cell, "v")
        if kind == "inlineStr":
            return _text(child(cell, "is"))
        if raw is None or not raw.text:
            return None if child(cell, "f") is not None and kind != "str" else ""
        if kind == "s":
            index = int(raw.text)
            return self._strings[index] if index < len(self._strings) else ""
        if kind == "b":
            return "TRUE" if raw.text.strip() == "1" else "FALSE"
        if kind != "n":
            return raw.text
        style = int(attribute(cell, "s", "0"))
        number_format, code = self._formats[style] if style < len(self._formats) else (0, None)
        return shown(raw.text, number_format, code, self._from_1904)

    def texts(self, part: str) -> list[str]:
        """Of text boxes that lie over the cells."""
        found = []
        for name in self._parts.related(part, "drawing"):
            for box in self._parts.xml(name).iter("{*}txBody"):
                found.append("\n".join("".join(t.text or "" for t in p.iter("{*}t")) for p in box.iter("{*}p")))
        return found


def _children(root: Any, name: str) -> list[Any]:
    found = child(root, name)
    return [one for one in found if tag(one) in ("numFmt", "xf")] if found is not None else []


def _text(element: Any) -> str:
    """Of a string, without the reading aids that stand beside it."""
    if element is None:
        return ""
    return "".join(_text(one) if tag(one) == "r" else one.text or "" for one in element if tag(one) in ("t", "r"))


def _column(reference: str) -> int:
    """28 of "AB12"; 0 of ""."""
    number = 0
    for letter in reference.rstrip("0123456789").replace("$", ""):
        number = number * 26 + ord(letter.upper()) - 64
    return number


def _repeat(cells: Cells, reference: str) -> None:
    """A merged cell has its text in the first of its rows alone: the others, where they hold something, get it too."""
    found = re.fullmatch(r"([A-Z]+)(\d+):[A-Z]+(\d+)", reference)
    if found:
        column, first, last = _column(found[1]), int(found[2]), int(found[3])
        text = cells.get(first, {}).get(column)
        for row in sorted(cells) if text else ():
            if first < row <= last:
                cells[row][column] = text or ""


def _add(draft: Draft, cells: Cells, number: int) -> None:
    """The cells as a table without empty rows and columns; a title above it is text."""
    columns = sorted({column for row in cells.values() for column in row})
    rows = [[cells[row].get(column, "") for column in columns] for row in sorted(cells)]
    while (
        len(rows) > 1 and len(columns) > 1 and sum(map(bool, rows[0])) == 1 and any(sum(map(bool, r)) > 1 for r in rows)
    ):
        draft.text(next(filter(None, rows.pop(0))), number)
    draft.table(rows, number)
