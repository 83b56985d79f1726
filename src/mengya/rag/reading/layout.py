"""Reading order of what stands somewhere on a page: lines, columns, tables, vertical text.

A PDF file, and OCR, say where pieces of text are, not how they follow each other. Places are upright here: x grows to
the right, y grows downward.
"""

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mengya.rag.reading.draft import Draft
from mengya.rag.reading.links import without_addresses
from mengya.rag.reading.structure import heading_level

WIDE = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]")
"""Characters that are written without spaces between them."""
_MARKER = re.compile(r"[(（]?[\d一二三四五六七八九十a-zA-Zivx]{1,3}[)）.、．]?|[•●○·\-–■□◆►]")
_FIGURE = re.compile(r"\d")
_ITEM = re.compile(
    r"[(（]?[一二三四五六七八九十百\d]{1,4}[)）、.．]|第[一二三四五六七八九十百千\d]{1,6}[条款]|[•●○■□◆►【]|[-–] "
)


_CUT = ("\x02", "\xad")
"""Hyphens at the ends of lines, as PDFium tells them."""
_OWN_HYPHEN = re.compile(r"(?:\d|\b[^\W\d_]).$")
"""One that a word has wherever it stands, as x-ray; of others nobody can tell."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of one line, without wide gaps inside."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    size: float
    """Height of its letters."""

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


Row = list[Segment]
"""Side by side, from left to right."""


def join(left: str, right: str) -> str:
    """Two pieces that follow each other: with a space between words, without one between Chinese characters, and
    without a hyphen that only ended a line."""
    if not left or not right:
        return left + right
    if left.endswith(_CUT):
        return left[:-1] + "-" * (_OWN_HYPHEN.search(left) is not None or not right[0].islower()) + right
    between = "" if WIDE.match(left[-1]) or WIDE.match(right[0]) or left[-1].isspace() else " "
    return left + between + right


def is_vertical(places: Sequence[Segment]) -> bool:
    """Whether single characters stand nearer to those below them than to those beside them."""
    if len(places) < 6:
        return False
    nearer = 0
    for one in places:
        below = min(
            (b.middle - one.middle for b in places if _over(one, b) and b.middle > one.middle + 0.3 * one.size),
            default=None,
        )
        beside = min(
            (b.left - one.left for b in places if _beside(one, b) and b.left > one.left + 0.3 * one.size), default=None
        )
        if below is not None and (beside is None or below * 1.1 < beside) and below < 3 * one.size:
            nearer += 1
        elif beside is not None and beside < 3 * one.size:
            nearer -= 1
    return nearer * 3 > len(places)


def _apart(first: float, second: float, one: Segment) -> bool:
    return second > first + 0.3 * one.size


def _over(a: Segment, b: Segment) -> bool:
    return abs(a.left + a.right - b.left - b.right) < max(a.size, b.size)


def _beside(a: Segment, b: Segment) -> bool:
    return abs(a.middle - b.middle) < max(a.size, b.size) / 2


def vertical_lines(places: Sequence[Segment]) -> list[str]:
    """Columns from the right to the left, each from top to bottom."""
    columns: list[list[Segment]] = []
    for one in sorted(places, key=lambda s: -(s.left + s.right)):
        if columns and _over(columns[-1][0], one):
            columns[-1].append(one)
        else:
            columns.append([one])
    return ["".join(one.text for one in sorted(column, key=lambda s: s.top)) for column in columns]


def add_page(draft: Draft, segments: Sequence[Segment], number: int, body_size: float) -> None:
    """The blocks of a page in reading order. `body_size`: of the letters of running text in the document."""
    for region in _regions(list(segments)):
        rows = rows_of(region)
        start = 0
        while start < len(rows):
            end = _end_of_table(rows, start)
            if end - start > 1:
                draft.table(_with_header(draft, _table(rows[start:end]), number), number)
                start = end
                continue
            end = start + 1
            while end < len(rows) and _end_of_table(rows, end) - end < 2:
                end += 1
            _add_paragraphs(draft, rows[start:end], number, body_size)
            start = end


def rows_of(segments: Sequence[Segment]) -> list[Row]:
    rows: list[Row] = []
    for one in sorted(segments, key=lambda s: s.middle):
        if rows and one.middle - statistics.fmean(s.middle for s in rows[-1]) < 0.5 * min(one.size, rows[-1][0].size):
            rows[-1].append(one)
        else:
            rows.append([one])
    return [sorted(row, key=lambda s: s.left) for row in rows]


def _regions(segments: list[Segment]) -> list[list[Segment]]:
    """Parts of a page that are read one after the other: cut between columns, else at the widest gap across."""
    if len(segments) < 8:
        return [segments] if segments else []
    size = statistics.median(s.size for s in segments)
    for left, right in _cuts([(s.left, s.right) for s in segments], size):
        middle = (left + right) / 2
        sides = [[s for s in segments if s.right <= middle], [s for s in segments if s.right > middle]]
        if all(map(_is_column, sides)) or (_is_column(sides[0]) and _is_short_column(sides[1], sides[0])):
            return [region for side in sides for region in _regions(side)]
    columns = _columns_of(segments, size)
    if len(columns) > 2 and all(map(_is_column, columns)):
        return columns
    for top, bottom in _cuts([(s.top, s.bottom) for s in segments], size * 0.8):
        middle = (top + bottom) / 2
        sides = [[s for s in segments if s.bottom <= middle], [s for s in segments if s.bottom > middle]]
        regions = [region for side in sides for region in _regions(side)]
        # A cut is worth it only where it sets columns free: else rows are read from top to bottom anyway.
        return regions if len(regions) > 2 else [segments]
    return [segments]


def _cuts(spans: list[tuple[float, float]], least: float) -> list[tuple[float, float]]:
    """Gaps between spans, of at least that width, the widest first."""
    gaps, reached = [], min(span[0] for span in spans)
    for start, end in sorted(spans):
        if start - reached >= least:
            gaps.append((reached, start))
        reached = max(reached, end)
    return sorted(gaps, key=lambda gap: gap[0] - gap[1])


def _is_column(segments: list[Segment]) -> bool:
    """Running text: several rows of which most fill the width."""
    if len(segments) < 4:
        return False
    width = max(s.right for s in segments) - min(s.left for s in segments)
    filled = sum(s.right - s.left > 0.6 * width and len(s.text) >= 8 for s in segments)
    return filled * 2 > len(segments)


def _is_short_column(segments: list[Segment], beside: list[Segment]) -> bool:
    """The last column of a text, which ends early: lines of one width, but for the last, from the top of the other."""
    size, lines = segments[0].size, sorted(segments, key=lambda s: s.top)
    even = all(abs(s.right - lines[0].right) < size for s in lines[:-1])
    words = all(len(s.text) >= 10 and sum(map(str.isdigit, s.text)) * 3 < len(s.text) for s in lines[:-1])
    return len(lines) > 1 and even and words and abs(lines[0].top - min(s.top for s in beside)) < 1.5 * size


def _columns_of(segments: list[Segment], size: float) -> list[list[Segment]]:
    """Cut at every gap that goes from the top to the bottom."""
    middles = sorted((left + right) / 2 for left, right in _cuts([(s.left, s.right) for s in segments], size))
    edges = [*middles, math.inf]
    columns: list[list[Segment]] = [[] for _ in edges]
    for one in segments:
        columns[next(i for i, edge in enumerate(edges) if one.right <= edge)].append(one)
    return columns


def _columns(rows: list[Row]) -> list[tuple[float, float]]:
    """Spans on the x axis that the segments of all rows cover together."""
    spans: list[tuple[float, float]] = []
    for start, end in sorted((s.left, s.right) for row in rows for s in row):
        if spans and start < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def _end_of_table(rows: list[Row], start: int) -> int:
    """Behind the last row of the table that begins at `start`; `start` + 1 or less if none does. Each row of a table
    has at least two cells, or one that goes on under a cell of the row above."""
    end = start
    if len(rows[start]) < 2:
        return start
    while end < len(rows):
        run = rows[start : end + 1]
        columns = _columns(run)
        whole = all(len({_column(columns, s) for s in row}) == len(row) for row in run)
        goes_on = len(rows[end]) > 1 or _column(columns, rows[end][0]) > 0
        near = end == start or rows[end][0].top - max(s.bottom for s in rows[end - 1]) < 3 * rows[end][0].size
        if not (whole and goes_on and near and len(columns) > 1):
            break
        end += 1
    firsts = [row[0].text for row in rows[start:end] if _column(_columns(rows[start:end]), row[0]) == 0]
    several = sum(len(row) > 1 for row in rows[start:end]) > 1
    return end if several and not all(_MARKER.fullmatch(text) for text in firsts) else start


def _column(columns: list[tuple[float, float]], segment: Segment) -> int:
    return next(i for i, (_, end) in enumerate(columns) if segment.left < end or i == len(columns) - 1)


def _table(rows: list[Row]) -> list[list[str]]:
    columns = _columns(rows)
    cells: list[list[str]] = []
    for row in rows:
        texts = [""] * len(columns)
        for one in row:
            texts[_column(columns, one)] = one.text
        if cells and not texts[0]:  # a cell that is wrapped goes on here
            cells[-1] = [join(above, text) for above, text in zip(cells[-1], texts, strict=True)]
        else:
            cells.append(texts)
    return cells


def _with_header(draft: Draft, rows: list[list[str]], number: int) -> list[list[str]]:
    """The rows of a table; of one that begins a page and goes on from the page before, with the names of the columns,
    which stand there: words, and over figures."""
    above = draft.blocks[-1] if draft.blocks else None
    if above is None or above.kind != "table" or above.page != number - 1:
        return rows
    header = above.rows[0]
    figures = [bool(_FIGURE.search(cell)) for cell in rows[0]]
    goes_on = len(rows[0]) == len(header) and any(figures) and not any(map(_FIGURE.search, header)) and all(header)
    return [list(header), *rows] if goes_on else rows


def _add_paragraphs(draft: Draft, rows: list[Row], number: int, body_size: float) -> None:
    lines = [_line(row) for row in rows]
    left, right = min(line.left for line in lines), max(line.right for line in lines)
    gaps = [(b.top - a.bottom) / b.size for a, b in itertools.pairwise(lines)]
    usual = statistics.median(gaps) if gaps else 0.0
    paragraph = ""
    for i, line in enumerate(lines):
        level = heading_level(line.text) or _level_by_size(line, body_size)
        above = lines[i - 1] if i else None
        if above is not None and not level and _goes_on(above, line, left, right, usual):
            paragraph = join(paragraph, line.text)
            continue
        draft.text(_whole(paragraph), number)
        paragraph = ""
        if level:
            draft.heading(_whole(line.text), level, number)
        else:
            paragraph = line.text
    draft.text(_whole(paragraph), number)


def _whole(text: str) -> str:
    """With the hyphen of a word whose other part is not there."""
    return text[:-1] + "-" if text.endswith(_CUT) else text


def _goes_on(above: Segment, line: Segment, left: float, right: float, usual: float) -> bool:
    """Whether a line belongs to the paragraph of the line above it: that one is full, and this one begins at the
    margin, at the usual distance, in letters of the same size."""
    em = line.size
    return (
        (above.right > right - 2.5 * em or above.text.endswith(_CUT))
        and line.left < left + 0.7 * em
        and line.top - above.bottom < min(usual + 0.7, 1.6) * em
        and not (right - left < 15 * em and above.text[-1] in "。！？!?:：")
        and abs(above.size - em) < 0.2 * em
        and not _ITEM.match(line.text)
    )


def _level_by_size(line: Segment, body_size: float) -> int:
    if len(without_addresses(line.text)) > 60 or line.size < 1.15 * body_size or not re.search(r"\w", line.text):
        return 0
    return 1 if line.size > 1.5 * body_size else 2


def _line(row: Row) -> Segment:
    text = " ".join(s.text for s in row)
    size = statistics.median(s.size for s in row)
    return Segment(text, row[0].left, min(s.top for s in row), row[-1].right, max(s.bottom for s in row), size)
