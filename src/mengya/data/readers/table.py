"""Tables with a character between cells; the first line names the columns."""

import csv
from collections.abc import Iterator

from mengya.data.readers.rows import BAD_BYTES, Rejected, Row, TextFile, is_whole, iter_lines

MAX_CELL_CHARS = 16 << 20


class _LineFeed:
    """Lines for `csv.reader`, which remembers those of the current record, so that they can be read again."""

    def __init__(self, text: TextFile) -> None:
        self._lines, self._encoding = iter_lines(text), text.encoding
        self._again: list[tuple[int, str]] = []  # last one first
        self.record: list[tuple[int, str]] = []
        self.rejected: list[Rejected] = []

    def __iter__(self) -> "_LineFeed":
        return self

    def __next__(self) -> str:
        item = self._again.pop() if self._again else self._next_line()
        self.record.append(item)
        return item[1]

    def _next_line(self) -> tuple[int, str]:
        while isinstance(item := next(self._lines), Rejected):
            self.rejected.append(item)
        return item[0], item[1].decode(self._encoding, "surrogateescape")

    def retry(self) -> None:
        """Give the current record's lines out again, except the first one."""
        self._again.extend(reversed(self.record[1:]))
        del self.record[1:]


def read_table(text: TextFile, delimiter: str) -> Iterator[Row | Rejected]:
    csv.field_size_limit(MAX_CELL_CHARS)  # per process; the default of 128 KB is too small for documents
    feed = _LineFeed(text)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        feed.record.clear()
        try:
            cells: list[str] | None = next(reader)
            problem = "not as many cells as the first row"
        except StopIteration:
            cells = None
        except csv.Error as error:
            cells, problem = [""] * (len(header) + 1), str(error)
        yield from feed.rejected
        feed.rejected.clear()
        if cells is None:
            return
        if not header:
            header = [cell.removeprefix("\ufeff").strip() for cell in cells]
            continue
        line, raw = feed.record[0]
        if cells and len(cells) != len(header):
            feed.retry()  # a quote that is never closed would swallow the rows behind it
            cells = _lenient_cells(raw, delimiter)
        if len(cells) == len(header) and all(map(is_whole, cells)):
            yield Row(text.file, line, dict(zip(header, cells, strict=True)))
        elif cells:
            reason = f"invalid CSV: {problem}" if len(cells) != len(header) else BAD_BYTES
            yield Rejected(text.file, line, reason, raw.encode(text.encoding, "surrogateescape"))


def _lenient_cells(line: str, delimiter: str) -> list[str]:
    """The cells of one line whose quotes break the rules: plain text in .tsv, closed ones inside a cell in .csv."""
    if delimiter == "\t":
        return line.rstrip("\r\n").split("\t")
    try:
        return next(csv.reader([line])) if line.count('"') % 2 == 0 else [line]
    except csv.Error:
        return [line]
