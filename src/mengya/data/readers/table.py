"""Tables with a character between cells; the first line names the columns."""

import codecs
import csv
from collections.abc import Iterator

from mengya.data.readers.rows import BAD_BYTES, Rejected, Row, TextFile, is_whole, iter_lines
from mengya.text.json_text import KeyTwice, whole_object

MAX_CELL_CHARS = 16 << 20
Line = tuple[int, bytes]
"""Its number, and its bytes."""


def read_table(text: TextFile, delimiter: str) -> Iterator[Row | Rejected]:
    csv.field_size_limit(MAX_CELL_CHARS)  # per process; the default of 128 KB is too small for documents
    lines = iter_lines(text)
    record: list[Line] = []  # the lines of the current row
    again: list[Line | Rejected] = []  # lines to be read once more, last one first
    rejected: list[Rejected] = []

    def feed() -> Iterator[str]:
        while item := again.pop() if again else next(lines, None):
            if isinstance(item, Rejected):
                rejected.append(item)
            else:
                record.append(item)
                yield item[1].decode(text.source.encoding, "surrogateescape")

    delimiter = _delimiter(next(lines, None), delimiter, again)
    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        record.clear()
        try:
            cells: list[str] | None = next(reader, None)
            problem = "not as many cells as the first row"
        except csv.Error as error:
            cells, problem = [""] * (len(header) + 1), str(error)
        yield from rejected
        rejected.clear()
        if cells is None:
            return
        if not header:
            names = (cell.removeprefix("\ufeff").strip() for cell in cells)
            header = [name or f"column {number}" for number, name in enumerate(names, 1)]
            continue
        line, raw = record[0]
        if cells and len(cells) != len(header):
            # A quote that is never closed would swallow the rows behind it: only the first line belongs to this row.
            again.extend(reversed(record[1:]))
            reader = csv.reader(feed(), delimiter=delimiter, strict=True)
            cells = _lenient_cells(raw.decode(text.source.encoding, "surrogateescape"), delimiter)
        if len(cells) == len(header) and all(map(is_whole, cells)):
            values = ("" if cell in _EMPTY else cell for cell in cells)
            try:
                yield Row(text.file, line, whole_object(list(zip(header, values, strict=True))))
            except KeyTwice as error:
                yield Rejected(text.file, line, str(error), raw)
        elif cells:
            reason = f"invalid CSV: {problem}" if len(cells) != len(header) else BAD_BYTES
            yield Rejected(text.file, line, reason, raw)


_EMPTY = frozenset(("nan", "NaN", "NULL", "null", "None", "<NA>"))
"""How tools write a cell without a value."""


def _delimiter(first: Line | Rejected | None, delimiter: str, again: list[Line | Rejected]) -> str:
    """The character between cells: another one if the first line, which goes into `again`, has no cell border else.

    Spreadsheets write semicolons where a comma stands in numbers, and may say so in a line of its own ("sep=;").
    """
    if first is None or isinstance(first, Rejected):
        if first is not None:
            again.append(first)
        return delimiter
    line = first[1].removeprefix(codecs.BOM_UTF8).strip()
    if line.startswith(b"sep=") and len(line) == 5:
        return line[4:].decode("ascii", "replace")
    again.append(first)
    others = [other for other in (b"\t", b";", b",") if other in line]
    return delimiter if delimiter.encode() in line or not others else others[0].decode()


def _lenient_cells(line: str, delimiter: str) -> list[str]:
    """The cells of one line whose quotes break the rules: plain text in .tsv, closed ones inside a cell in .csv."""
    if delimiter == "\t":
        return line.rstrip("\r\n").split("\t")
    try:
        return next(csv.reader([line], delimiter=delimiter)) if line.count('"') % 2 == 0 else [line]
    except csv.Error:
        return [line]
