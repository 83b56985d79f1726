"""A document while it is read."""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mengya.data.cleaning import strip_controls
from mengya.rag.characters import fold_radicals
from mengya.rag.document import Block, Document, Page
from mengya.rag.reading.limits import Limits
from mengya.rag.reading.links import crowded, without_addresses

_SPACES = re.compile(r"(?<=\S)[ \t\xa0]+")
_CUTS = re.compile("[\xad\u200b\u2060]|\x1b\\[[0-9;?]*[@-~]")
"""Where a word may be cut, or may not, and colours of a terminal: nobody sees them, but a search and a model do."""
_CODED = re.compile(
    r"data:[\w/+.-]+(?:;[\w=.-]+)*;base64,[A-Za-z0-9+/=_-]*"
    r"|(?<![A-Za-z0-9+/])(?:[A-Za-z0-9+/]{500,}|(?:[A-Za-z0-9+/]{60,}\r?\n){6,}[A-Za-z0-9+/]*)={0,2}"
)
"""What may be a picture, or the like, that is written as letters."""
_BREAKS = re.compile("[\x0b\x0c\x85\u2028\u2029]")
"""What ends a line, or a page, beside line feeds and carriage returns."""


_FIGURE = re.compile(r"\s*[-+(¥$€￥]*\d[\d,.%年月日时分秒:/\- )元]*")


@dataclass(frozen=True)
class Source:
    """What a reader is given."""

    path: Path
    name: str
    """For messages, and for the ending where the content leaves a choice."""
    limits: Limits
    progress: Callable[[int, int], None]
    """progress(pages done, pages in all), to be called after each page."""


class Full(Exception):
    """The draft holds as many characters as the limits allow: the reader need not go on."""


State = Literal["text", "ocr", "blank", "unread"]


class Draft:
    """Blocks, pages and notes in the order in which they are added; text is cleaned here, and nowhere else."""

    def __init__(self, limits: Limits) -> None:
        self.blocks: list[Block] = []
        self.pages: list[Page] = []
        self.notes: list[str] = []
        self._coded = self._addresses = 0
        """Characters of what is coded, and links, that were left out."""
        self._left = limits.characters
        self._limit = limits.characters

    def heading(self, text: str, level: int, page: int | None = None) -> None:
        self._add("heading", one_line(without_addresses(text)), page, level=level)

    def text(self, text: str, page: int | None = None) -> None:
        lines = _tidy(self._decoded(text)).split("\n")
        self._add("text", "\n".join(self._thinned([line])[0] for line in lines), page)

    def table(self, rows: Sequence[Sequence[str]], page: int | None = None) -> None:
        """Rows of any lengths; empty ones at the end, and empty columns on the right, are left out."""
        tidy = [[one_line(self._decoded(cell)) for cell in row] for row in rows]
        tidy = [self._thinned(row) for row in tidy if any(row)]
        width = max((max(i + 1 for i, cell in enumerate(row) if cell) for row in tidy), default=0)
        cells = tuple(tuple((row + [""] * width)[:width]) for row in tidy)
        self._add("table", "\n".join(" | ".join(row) for row in cells), page, rows=cells)

    def sheet(self, rows: Sequence[Sequence[str]], page: int | None = None) -> None:
        """Rows as they stand in a sheet: a title above a table, in a row of its own, is text, and so is a remark below.
        Behind an empty row another table may begin; what goes on under a title has the header of the table above."""
        wide = any(_filled(row) > 1 for row in rows)
        table: list[Sequence[str]] = []
        for part in _parts(rows):
            titles: list[str] = []
            while wide and part and _filled(part[0]) == 1 and (part[0][0].strip() or not table):
                titles.append(" ".join(part.pop(0)).strip())
            another = bool(part) and (not table or _is_another(part, table))
            if titles or another:
                self.table(table, page)
                header, table = table[:1], []
                for title in titles:
                    self.text(title, page)
                table = [] if another or not part else header
            table += part
        self.table(table, page)

    def _add(
        self, kind: Literal["heading", "text", "table"], text: str, page: int | None, level: int = 0, rows: tuple = ()
    ) -> None:
        if not text:
            return
        if len(text) > self._left:
            self.note(f"only the first {self._limit - self._left:,} characters were read")
            raise Full
        self._left -= len(text)
        self.blocks.append(Block(kind, text, page, level, rows))

    def _decoded(self, text: str) -> str:
        """Without what is coded."""
        left = _CODED.sub(lambda found: "" if _is_coded(found[0]) else found[0], text) if len(text) > 100 else text
        self._coded += len(text) - len(left)
        return left

    def _thinned(self, cells: list[str]) -> list[str]:
        """Of a line: without addresses if it has too many."""
        many = crowded(" | ".join(cells))
        self._addresses += many
        return [without_addresses(cell) for cell in cells] if many else cells

    def page(self, number: int, state: State, label: str = "", note: str = "") -> None:
        self.pages.append(Page(number, state, one_line(label), note))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def finish(self, name: str, kind: str) -> Document:
        if not self.blocks:
            self.note("no text was found")
        if self._coded:
            self.note(f"left out: {self._coded:,} characters of pictures and the like that are written as base64")
        if self._addresses:
            self.note(f"left out: {self._addresses:,} addresses of links, where a line has many")
        return Document(name, kind, tuple(self.blocks), tuple(self.pages), tuple(self.notes))


def _is_coded(text: str) -> bool:
    """Other long runs, such as genes and hashes, have fewer kinds of letters."""
    return text.startswith("data:") or all(re.search(kind, text) for kind in ("[a-z]", "[A-Z]", "[0-9]"))


def _parts(rows: Sequence[Sequence[str]]) -> list[list[Sequence[str]]]:
    """Those between empty rows."""
    groups = itertools.groupby(rows, lambda row: _filled(row) > 0)
    return [list(group) for filled, group in groups if filled]


def _is_another(part: Sequence[Sequence[str]], table: Sequence[Sequence[str]]) -> bool:
    """Whether the rows behind an empty one have a header of their own: words over figures, or over other columns."""
    columns = [{i for i, cell in enumerate(row) if cell.strip()} for row in part]
    if (
        len(part) < 2
        or len(columns[0]) < 2
        or any(map(_FIGURE.fullmatch, part[0]))
        or not set.union(*columns) <= columns[0]
    ):
        return False
    above = {i for i, cell in enumerate(table[0]) if cell.strip()}
    return columns[0] != above or any(map(_FIGURE.fullmatch, (cell for row in part[1:] for cell in row)))


def _filled(row: Sequence[str]) -> int:
    return sum(bool(cell.strip()) for cell in row)


def clean(text: str) -> str:
    """`text` without control characters, with \n line ends, with radicals as characters."""
    return fold_radicals(strip_controls(_BREAKS.sub("\n", _CUTS.sub("", text))))


def one_line(text: str) -> str:
    return " ".join(clean(text).split())


def _tidy(text: str) -> str:
    lines = [_SPACES.sub(" ", line).rstrip() for line in clean(text).split("\n")]
    return "\n".join(lines).strip("\n \u3000")
