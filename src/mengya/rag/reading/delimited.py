"""Tables as text: cells between commas, semicolons or tabs."""

import csv
import io

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
    except csv.Error:  # quotes that break the rules: they are characters then
        draft.note("quotation marks do not pair up; they were read as characters")
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=csv.QUOTE_NONE))
    draft.table(rows)


def _delimiter(text: str) -> str:
    """What cuts the first rows into the same number of cells, more than one."""

    def fitness(delimiter: str) -> tuple[float, int]:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row][:20]
        widths = [len(row) for row in rows[:-1] or rows]
        same = widths.count(widths[0]) / len(widths) if widths and widths[0] > 1 else 0.0
        return same, widths[0] if widths else 0

    csv.field_size_limit(len(text) + 1)
    return max(",\t;|", key=fitness)
