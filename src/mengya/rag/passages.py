"""A document cut into passages: along headings, paragraphs and sentences, each with its place in the document."""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mengya.rag.document import Block, Document

SIZE = 400
"""Characters of text that a passage is filled up to."""
LIMIT = 800
"""Characters that no passage exceeds; up to here a table stays whole."""
_CAPTION = 80
"""Characters of a line above a table that belongs to it."""
_CLOSING = "”’」』】》〉）)\\]\"'"
_SENTENCE_END = re.compile(
    rf"(?:[。！？；…]|(?<![A-Za-z0-9/=&_-])[!?;]|[!?;](?![A-Za-z0-9%/=&_-]))+[{_CLOSING}]*"
    rf"|(?<![.\d\s])\.[{_CLOSING}]*(?=\s|$)|\n|$"
)
"""But for marks inside of an address."""
_CLAUSE = re.compile(rf"[，、,：:]+[{_CLOSING}]*|\s+")
_UNFINISHED = re.compile(rf"[^。！？!?；;…：:.\s{_CLOSING}]$")
_WIDE = re.compile(r"[\u2e80-\uffef]")


_CELL_END = re.compile(r" \| ")


class Piece(NamedTuple):
    """A part of a passage that stands in the document as it is."""

    at: int
    """Where it begins in the text of the passage."""
    begin: int
    """In the text of the document, as is `end`."""
    end: int
    page: int | None


@dataclass(frozen=True)
class Passage:
    text: str
    headings: tuple[str, ...]
    """Those that it stands under, the highest first."""
    pieces: tuple[Piece, ...]
    """In order. Between them there is at most a line end or a space, which is not in the document."""

    @property
    def pages(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(piece.page for piece in self.pieces if piece.page is not None))

    def located(self, begin: int, end: int) -> tuple[Piece, ...]:
        """Where in the document the characters from `begin` to `end` of the text stand."""
        return tuple(_clipped(self.pieces, begin, end, at=0))


def text_of(document: Document) -> str:
    """The whole text, which places are counted in."""
    return "\n".join(block.text for block in document.blocks)


def cut(document: Document, size: int = SIZE, limit: int = LIMIT) -> list[Passage]:
    """The passages of a document, in order; none of more than `limit` characters. All of its text is in one of them,
    but for what has no letter, digit or symbol."""
    return list(_Cutter(size, limit).cut(document))


def sentences(text: str) -> list[tuple[int, int]]:
    """Begin and end of each, with its closing quotes, without the space around it."""
    found, last = [], 0
    for match in _SENTENCE_END.finditer(text):
        begin, end = _stripped(text, last, match.end())
        if begin < end:
            found.append((begin, end))
        last = match.end()
    return found


def _stripped(text: str, begin: int, end: int) -> tuple[int, int]:
    while begin < end and text[begin].isspace():
        begin += 1
    while end > begin and text[end - 1].isspace():
        end -= 1
    return begin, end


class _Run(NamedTuple):
    """A paragraph, perhaps over a page break, or some of its sentences."""

    text: str
    pieces: tuple[Piece, ...]

    def part(self, begin: int, end: int) -> "_Run":
        return _Run(self.text[begin:end], tuple(_clipped(self.pieces, begin, end, at=begin)))


def _clipped(pieces: Sequence[Piece], begin: int, end: int, at: int) -> Iterator[Piece]:
    """What of the pieces lies between, with places counted from `at`."""
    for piece in pieces:
        first, last = max(begin, piece.at), min(end, piece.at + piece.end - piece.begin)
        if first < last:
            moved = piece.begin - piece.at
            yield Piece(first - at, first + moved, last + moved, piece.page)


def _continued(before: _Run, run: _Run) -> _Run:
    wide = _WIDE.match(before.text[-1]) or _WIDE.match(run.text[0])
    return _joined([before, run], "" if wide else " ")


def _joined(runs: Sequence[_Run], glue: str = "\n") -> _Run:
    text, pieces = "", []
    for run in runs:
        text += glue if text else ""
        pieces += [piece._replace(at=piece.at + len(text)) for piece in run.pieces]
        text += run.text
    return _Run(text, tuple(pieces))


class _Cutter:
    def __init__(self, size: int, limit: int):
        self._size, self._limit = size, limit
        self._path: dict[int, str] = {}
        """Level -> heading that is open."""
        self._headings: list[_Run] = []
        """Those that wait for what they are the headings of."""
        self._held: list[_Run] = []
        """Paragraphs below them that wait to become a passage."""

    def cut(self, document: Document) -> Iterator[Passage]:
        begin, last = 0, None
        for block in document.blocks:
            place = begin
            begin += len(block.text) + 1
            if not any(map(_counts, block.text)):
                continue
            run = _Run(block.text, (Piece(0, place, begin - 1, block.page),))
            if block.kind == "heading":
                if self._held:
                    yield from self._flush()
                self._path = {level: name for level, name in self._path.items() if level < max(1, block.level)}
                self._path[max(1, block.level)] = " ".join(block.text.split())
                self._headings.append(run)
            elif block.kind == "table":
                yield from self._table(block, run)
            else:
                continued = self._held and last is not None and _continues(last, block)
                yield from self._paragraph(_continued(self._held.pop(), run) if continued else run)
            last = block
        yield from self._flush()

    def _paragraph(self, run: _Run) -> Iterator[Passage]:
        if self._held and len(_joined([*self._headings, *self._held, run]).text) > self._size:
            yield from self._flush()
        self._held.append(run)

    def _flush(self) -> Iterator[Passage]:
        whole = _joined([*self._headings, *self._held])
        self._headings, self._held = [], []
        for begin, end in self._spans(whole.text):
            yield self._passage(whole.part(begin, end))

    def _passage(self, run: _Run) -> Passage:
        return Passage(run.text, tuple(name for _, name in sorted(self._path.items())), run.pieces)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Parts of about equal length, of whole sentences where these are short enough."""
        if len(text) <= self._size:
            return [_stripped(text, 0, len(text))] if any(map(_counts, text)) else []
        aim = len(text) / -(-len(text) // self._size)
        spans: list[tuple[int, int]] = []
        for begin, end in (part for sentence in sentences(text) for part in self._short(text, *sentence)):
            if spans and spans[-1][1] - spans[-1][0] < aim and end - spans[-1][0] <= self._size:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((begin, end))
        return [span for span in spans if any(map(_counts, text[slice(*span)]))]

    def _short(self, text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """A sentence, cut at commas, spaces or anywhere if it is longer than a passage."""
        while end - begin > self._size:
            ends = [match.end() for match in _CLAUSE.finditer(text, begin + self._size // 2, begin + self._size)]
            after = ends[-1] if ends else begin + self._size
            while after > begin + 1 and unicodedata.combining(text[after]):
                after -= 1
            yield _stripped(text, begin, after)
            begin = after
        yield _stripped(text, begin, end)

    def _table(self, block: Block, run: _Run) -> Iterator[Passage]:
        """Whole if it is short enough, else some rows at a time, each with the caption and the header."""
        caption = [self._held.pop()] if self._held and _is_caption(self._held[-1].text) else []
        if self._held:
            yield from self._flush()
        whole = _joined([*self._headings, *caption, run])
        if len(whole.text) <= self._limit:
            self._headings = []
            yield self._passage(whole)
            return
        yield from self._flush()
        head = 1 + _has_two_headers(block)
        for rows in _strips(block, _rows(block, run), head, self._limit // 3):
            yield from self._strip(caption, rows, head)
            caption = []

    def _strip(self, caption: list[_Run], rows: list[_Run], head: int) -> Iterator[Passage]:
        """Rows that have room side by side, the first ones being the header."""
        top = [*caption, *rows[:head]]
        if len(_joined(top).text) > self._limit // 2:  # a header that leaves no room
            top, rows = [], [*caption, *rows]
        else:
            rows = rows[head:]
        held = list(top)
        for row in rows:
            if len(held) > len(top) and len(_joined([*held, row]).text) > self._limit:
                yield self._passage(_joined(held))
                held = list(top)
            if len(_joined([*held, row]).text) > self._limit:
                yield from self._long_row(top, row)
            else:
                held.append(row)
        if len(held) > len(top):
            yield self._passage(_joined(held))

    def _long_row(self, top: list[_Run], row: _Run) -> Iterator[Passage]:
        """A row that is longer than a passage, in parts: each behind the header and the cells before the longest one,
        which say what it is of, as far as there is room."""
        ends = [match.start() for match in _CELL_END.finditer(row.text)]
        begins = [0, *(match.end() for match in _CELL_END.finditer(row.text))]
        begin, _ = max(zip(begins, [*ends, len(row.text)], strict=True), key=lambda cell: cell[1] - cell[0])
        room = self._limit - self._size
        before = row.part(0, begin if len(_joined([*top, row.part(0, begin)]).text) < room else 0)
        title = top if len(_joined([*top, before]).text) < room else []
        rest = row.part(len(before.text), len(row.text))
        for span in self._spans(rest.text):
            yield self._passage(_joined([*title, _joined([before, rest.part(*span)], "")]))


def _counts(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character) in ("So", "Sc", "Sm")


def _continues(last: Block, block: Block) -> bool:
    """Whether a paragraph goes on over a page break."""
    return (
        last.kind == block.kind == "text"
        and last.page is not None
        and block.page == last.page + 1
        and _UNFINISHED.search(last.text.rstrip()) is not None
    )


def _is_caption(text: str) -> bool:
    return len(text) <= _CAPTION and "\n" not in text and _UNFINISHED.search(text.rstrip("：: ")) is not None


def _has_two_headers(block: Block) -> bool:
    """Whether the second row says what the first one leaves open, under names of several columns."""
    if len(block.rows) < 3 or len(block.rows[0]) != len(block.rows[1]):
        return False
    first, second = block.rows[:2]
    under = [i for i, text in enumerate(first) if not text]
    return (
        bool(under) and all(second[i] for i in under) and any(a and a == b for a, b in zip(first, second, strict=True))
    )


def _strips(block: Block, rows: list[_Run], head: int, most: int) -> Iterator[list[_Run]]:
    """The rows; or, of a table with a header of more than `most` characters, some columns of all rows at a time, each
    time behind the first column, which says what a row is of."""
    ends = [list(itertools.accumulate(len(cell) + 3 for cell in row)) for row in block.rows]
    even = len(rows) == len(ends) and len({len(row) for row in ends}) == 1
    if not even or sum(row[-1] for row in ends[:head]) <= most or sum(row[0] for row in ends[:head]) > most // 2:
        yield rows
        return
    first = 1
    while first < len(ends[0]):
        last = first + 1
        while last < len(ends[0]) and sum(row[last] - row[first - 1] + row[0] for row in ends[:head]) <= most:
            last += 1
        strip = [
            _joined([run.part(0, end[0] - 1), run.part(end[first - 1], end[last - 1] - 3)], " ")
            for run, end in zip(rows, ends, strict=True)
        ]
        filled = [any(row[first:last]) for row in block.rows]
        yield [run for number, run in enumerate(strip) if number < head or filled[number]]
        first = last


def _rows(block: Block, run: _Run) -> list[_Run]:
    """The rows of a table: a line each, or several where a cell has more lines."""
    found: list[_Run] = []
    place = 0
    for row in block.rows:
        text = " | ".join(row)
        begin = run.text.find(text, place)
        if begin < 0:
            found = []
            break
        place = begin + len(text)
        if text:
            found.append(run.part(begin, place))
    if not found:
        found = [run.part(match.start(), match.end()) for match in re.finditer(r"[^\n]+", run.text)]
    return found
