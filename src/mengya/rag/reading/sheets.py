"""Excel files: a page and a table a sheet, with numbers as Excel shows them."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mengya.rag.reading.charts import drawn, words
from mengya.rag.reading.draft import Draft, Source, State, one_line
from mengya.rag.reading.links import linked
from mengya.rag.reading.marks import lowered, merged, raised, struck
from mengya.rag.reading.office import Parts, attribute, child, tag, value
from mengya.rag.reading.pictures import UNREAD, described, is_large
from mengya.rag.reading.sheet_formats import shown
from mengya.rag.reading.slide_text import text_of

Cells = dict[int, dict[int, str]]
"""Row -> column -> text, both from 1; only those with text."""
_LINK = re.compile(r'(?:_xlfn\.)?HYPERLINK\("([^"]+)"', re.IGNORECASE)
"""A formula."""
_COLUMNS = 16_384
"""As many as a sheet may have."""


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
            found = reader.sheet(part)
            over = reader.over(part)
            if found.formulas:
                notes.append(f"{found.formulas} formulas without a stored result; open the file in Excel and save it")
            if found.hidden:
                notes.append("hidden rows or columns were read, too")
            if over.pictures:
                notes.append(UNREAD)
            if found.cells or over.texts:
                draft.heading(name, 1, number)
            _add(draft, found.cells, number)
            for text in over.texts:
                draft.text(text, number)
        else:
            notes.append("a chart or a sheet of macros")
        empty = kind == "worksheet" and not over.pictures
        state: State = "text" if len(draft.blocks) > before else "blank" if empty else "unread"
        draft.page(number, state, name, "; ".join(notes))
        source.progress(number, len(sheets))
    if len(sheets) > source.limits.pages:
        draft.note(f"it has {len(sheets):,} sheets; only the first {source.limits.pages:,} were read")


def _relation(sheet: Any) -> str:
    """Its r:id, which is not its id."""
    return next((text for key, text in sheet.attrib.items() if key.startswith("{") and key.endswith("}id")), "")


@dataclass
class _Sheet:
    cells: Cells = field(default_factory=lambda: defaultdict(dict))
    formulas: int = 0
    """Those that have no stored result."""
    hidden: bool = False
    """Some rows or columns with text are."""


@dataclass
class _Over:
    """What lies over the cells of a sheet."""

    texts: list[str] = field(default_factory=list)
    """Of text boxes, charts and descriptions of pictures."""
    pictures: bool = False
    """Some may hold text."""


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

    def sheet(self, part: str) -> _Sheet:
        sheet, number, hidden, merged, links = _Sheet(), 0, set(), [], self._parts.links(part)
        for one in self._parts.each(part, "col", "row", "mergeCell", "hyperlink"):
            if tag(one) == "mergeCell":
                merged.append(attribute(one, "ref"))
            elif tag(one) == "hyperlink":
                _link(sheet.cells, attribute(one, "ref"), links.get(attribute(one, "id")))
            elif tag(one) == "row":
                number = int(attribute(one, "r", str(number + 1)))
                self._add_row(sheet, one, number)
                sheet.hidden |= number in sheet.cells and _is_hidden(one)
            elif _is_hidden(one):
                hidden |= set(range(int(attribute(one, "min")), min(int(attribute(one, "max")), _COLUMNS) + 1))
        sheet.hidden |= any(not hidden.isdisjoint(row) for row in sheet.cells.values())
        last = max(sheet.cells, default=0)
        for reference in merged:
            _repeat(sheet.cells, reference, last)
        for reference, text in self._comments(part):
            place = re.fullmatch(r"([A-Z]+)(\d+)", reference)
            if place and text:
                row, column = sheet.cells[int(place[2])], _column(place[1])
                row[column] = f"{row.get(column, '')}〔注：{text}〕"
        return sheet

    def _add_row(self, sheet: _Sheet, row: Any, number: int) -> None:
        column = 0
        for cell in row:
            column = _column(attribute(cell, "r")) or column + 1
            text = self._shown(cell) if len(cell) else ""  # a format alone: there may be a million of them
            sheet.formulas += text is None
            if text and text.strip():
                formula = child(cell, "f")
                link = _LINK.match(formula.text or "") if formula is not None else None
                sheet.cells[number][column] = linked(text, link[1]) if link else text

    def _comments(self, part: str) -> Iterator[tuple[str, str]]:
        """(cell, what somebody wrote beside it). Of a thread the old form, too, stands in the file, under a notice."""
        threads: dict[str, list[str]] = defaultdict(list)
        for name in self._parts.related(part, "threadedComment"):
            for comment in self._parts.xml(name).iter("{*}threadedComment"):
                threads[attribute(comment, "ref")].append(_text_below(comment, "text"))
        yield from ((place, one_line("；".join(filter(None, texts)))) for place, texts in threads.items())
        for name in self._parts.related(part, "comments"):
            for comment in self._parts.xml(name).iter("{*}comment"):
                if attribute(comment, "ref") in threads:
                    continue
                text = _text_below(comment, "t")
                if text.startswith("["):  # a thread, in a file that another program has saved without it
                    text = text.rpartition("\n\n")[2].partition(":")[2] or text
                yield attribute(comment, "ref"), one_line(text)

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

    def over(self, part: str) -> _Over:
        found = _Over()
        for name in self._parts.related(part, "drawing"):
            root = self._parts.xml(name)
            found.texts += map(text_of, root.iter("{*}txBody"))
            found.texts += map(words, drawn(self._parts, name, root))
            found.texts += map(described, root.iter("{*}pic"))
            found.pictures |= any(is_large(anchor) for anchor in root if next(anchor.iter("{*}pic"), None) is not None)
        found.texts = list(filter(None, found.texts))
        return found


def _is_hidden(element: Any) -> bool:
    return attribute(element, "hidden") in ("1", "true")


def _children(root: Any, name: str) -> list[Any]:
    found = child(root, name)
    return [one for one in found if tag(one) in ("numFmt", "xf")] if found is not None else []


def _text(element: Any) -> str:
    """Of a string, without the reading aids that stand beside it, and with what Excel writes as _x000D_."""
    if element is None:
        return ""
    text = merged(
        "".join(_run(one) if tag(one) == "r" else one.text or "" for one in element if tag(one) in ("t", "r"))
    )
    return re.sub("_x([0-9A-Fa-f]{4})_", lambda match: chr(int(match[1], 16)), text)


def _text_below(element: Any, name: str) -> str:
    return "".join(one.text or "" for one in element.iter(f"{{*}}{name}")).strip()


def _run(run: Any) -> str:
    """Letters of one font, with what its place and a line through it mean."""
    text = "".join(one.text or "" for one in run if tag(one) == "t")
    properties = child(run, "rPr")
    if properties is None:
        return text
    place = value(properties, "vertAlign")
    text = raised(text) if place == "superscript" else lowered(text) if place == "subscript" else text
    return struck(text) if child(properties, "strike") is not None and value(properties, "strike") != "0" else text


def _column(reference: str) -> int:
    """28 of "AB12"; 0 of ""."""
    number = 0
    for letter in reference.rstrip("0123456789").replace("$", ""):
        number = number * 26 + ord(letter.upper()) - 64
    return number


def _repeat(cells: Cells, reference: str, end: int) -> None:
    """A merged cell has its text in the first of its rows alone: the others, where they hold something, get it too.
    `end`: the last row that does."""
    found = re.fullmatch(r"([A-Z]+)(\d+):[A-Z]+(\d+)", reference)
    if found:
        column, first, last = _column(found[1]), int(found[2]), int(found[3])
        text = cells.get(first, {}).get(column)
        for row in range(first + 1, min(last, end) + 1) if text else ():
            if row in cells:
                cells[row][column] = text or ""


def _link(cells: Cells, reference: str, target: str | None) -> None:
    """A link of a cell, or of several, behind the words of the first."""
    place = re.match(r"([A-Z]+)(\d+)", reference)
    row = cells.get(int(place[2]), {}) if place else {}
    if place and (column := _column(place[1])) in row:
        row[column] = linked(row[column], target)


def _add(draft: Draft, cells: Cells, number: int) -> None:
    """The cells as a table without empty rows and columns."""
    columns = sorted({column for row in cells.values() for column in row})
    rows: list[list[str]] = []
    last = min(cells, default=0)
    for row in sorted(cells):
        rows += [[]] * (row > last + 1)
        rows.append([cells[row].get(column, "") for column in columns])
        last = row
    draft.sheet(rows, number)
