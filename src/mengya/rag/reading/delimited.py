"""Tables as text: cells between commas, semicolons or tabs."""

import csv
import io
from collections import Counter
from collections.abc import Sequence

from mengya.rag.reading.draft import Draft, Source
from mengya.rag.reading.encodings import decode


def read(source: Source, draft: Draft) -> None:
    text, notes = decode(source.path.read_bytes())
    for note in notes:
        draft.note(note)
    first, _, rest = text.partition("\n")
    if first.strip().startswith("sep=") and len(first.strip()) == 5:  # Excel's own line
        delimiter, text = first.strip()[4], rest
    else:
        delimiter = _delimiter(text[:20_000])
    csv.field_size_limit(len(text) + 1)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        rows = _with_bad_quotes(text, delimiter, open_ended="end of data" in str(error), draft=draft)
    draft.sheet(rows)


def _with_bad_quotes(text: str, delimiter: str, open_ended: bool, draft: Draft) -> list[list[str]]:
    """Rows of a file whose quotation marks break the rules. Those in the middle of a cell are forgiven; where that
    gives less even rows, or one is never closed, all of them are characters."""
    forgiven = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    plain = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=csv.QUOTE_NONE))
    if open_ended or _evenness(forgiven) < _evenness(plain):
        draft.note("quotation marks do not pair up; they were read as characters")
        return plain
    draft.note("quotation marks inside of cells are not doubled; some were left out")
    return forgiven


def _delimiter(text: str) -> str:
    """What cuts the first rows into the same number of cells, more than one. Of equals the comma is the last: it stands
    in numbers and sentences, too."""

    def fitness(delimiter: str) -> float:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row][:20]
        return _evenness(rows[:-1] or rows)  # the last one may be cut

    csv.field_size_limit(len(text) + 1)
    return max("\t;|,", key=fitness)


def _evenness(rows: Sequence[Sequence[str]]) -> float:
    """The share of rows that have the commonest number of cells above one."""
    widths = Counter(len(row) for row in rows)
    return max((count for width, count in widths.items() if width > 1), default=0) / max(len(rows), 1)
