"""Lines that return on page after page: running heads, running feet, numbers of pages. They belong to no paragraph."""

import itertools
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

from mengya.rag.reading.layout import Row, Segment, rows_of

_PAGES = 3
"""On so many pages a line is at the same height before it counts as running."""
_BAND = 8.0
"""Points of height that are taken for the same."""
_LINES = 2
"""That a head or a foot has at most."""
# A number of a page stands by itself, or among the words of such; one of an invoice follows its name.
_NUMBER = re.compile(r"(?<![^\s第\-–—·|/(（])\d{1,4}(?![^\s页頁\-–—·|/)）])")
_NUMBER_ALONE = re.compile(r"[\d\s第共页頁/\-–—.·|ivxlcof]*(page)?[\d\s第共页頁/\-–—.·|ivxlcof]*", re.IGNORECASE)


def without_running(pages: Sequence[Sequence[Segment]]) -> list[list[list[Segment]]]:
    """The pages without lines that return at the edge of other pages, at the same height, set apart from the text; with
    nothing in them that changes but the number of the page. Each stays on its first page, as a part before the text,
    but for mere numbers."""
    edges = [list(_edges(page)) for page in pages]
    counts: Counter[tuple] = Counter()
    for number, rows in enumerate(edges):
        for row in rows:
            counts.update(set(_keys(row, number)))
    seen: set[str] = set()
    kept = []
    for number, page in enumerate(pages):
        gone: set[int] = set()
        first: list[Segment] = []
        for row in edges[number]:
            if any(_near(counts, key) >= _PAGES for key in _keys(row, number)):
                text = re.sub(r"\d", "", _text(row))
                gone |= {id(segment) for segment in row}
                if text not in seen and not _NUMBER_ALONE.fullmatch(_text(row)):
                    first += row
                seen.add(text)
        text_of_page = [segment for segment in page if id(segment) not in gone]
        kept.append([first, text_of_page] if first else [text_of_page])
    return kept


def _edges(page: Sequence[Segment]) -> Iterator[Row]:
    """The first and the last lines, where a gap sets them apart."""
    rows = rows_of(page)
    gaps = [min(s.top for s in below) - max(s.bottom for s in above) for above, below in itertools.pairwise(rows)]
    if not gaps:
        return
    usual = statistics.median_low(gaps)

    def apart(i: int) -> bool:
        size = rows[i][0].size
        return gaps[i] > (max(0.8 * size, 1.5 * usual) if len(gaps) > 1 else 2 * size)

    for i in range(min(_LINES, len(gaps))):
        if apart(i):
            yield from rows[: i + 1]
            break
    for i in range(min(_LINES, len(gaps))):
        if apart(-1 - i):
            yield from rows[-1 - i :]
            break


def _text(row: Row) -> str:
    return " ".join(segment.text for segment in row)


def _keys(row: Row, page: int) -> Iterator[tuple[str, int]]:
    """(text, height) with each number as it is, and as its distance from that of the page."""
    text, height = _text(row), round(row[0].middle / _BAND)
    numbers = list(_NUMBER.finditer(text))[:3]
    for chosen in range(1 << len(numbers)):
        parts, last = [], 0
        for i, found in enumerate(numbers):
            if chosen >> i & 1:
                parts += [text[last : found.start()], f"\0{int(found[0]) - page}\0"]
                last = found.end()
        yield "".join((*parts, text[last:])), height


def _near(counts: Counter[tuple], key: tuple[str, int]) -> int:
    text, height = key
    return sum(counts[text, height + by] for by in (-1, 0, 1))
