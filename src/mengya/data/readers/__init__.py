"""Rows out of files of every supported format, streaming; what is malformed comes as a value, too.

Encoding is UTF-8 (with or without byte order mark) or GB18030, decided per file. Lines end at \\n only: U+2028 and the
like are ordinary characters.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from mengya.data.files import HEAD_BYTES, ByteSource, NotText, detect_encoding, file_format
from mengya.data.readers.json_rows import read_json, read_lines
from mengya.data.readers.parquet import read_parquet
from mengya.data.readers.plain import read_plain
from mengya.data.readers.rows import Rejected, Row, TextFile
from mengya.data.readers.table import read_table

__all__ = ["Rejected", "Row", "read_rows"]

_TEXT_READERS: dict[str, Callable[[TextFile], Iterator[Row | Rejected]]] = {
    ".txt": read_plain,
    ".md": read_plain,
    ".jsonl": read_lines,
    ".json": read_json,
    ".csv": lambda text: read_table(text, ","),
    ".tsv": lambda text: read_table(text, "\t"),
}


def read_rows(file: Path) -> Iterator[Row | Rejected]:
    """The rows of one file, in order.

    Plain text: one row if it is short, else pieces of at most `DOCUMENT_CHARS`, cut at a blank line, line, sentence or
    space where there is one; joined they are the file. JSON: an array's elements, or one value a line. CSV: the first
    line names the columns. Damaged data: the rows before the damage, and what is rejected for it.
    """
    line = part = 0
    for row in read_parquet(file) if file_format(file)[0] == ".parquet" else _read_text(file):
        if isinstance(row, Row):
            line, part = row.line, part + 1 if row.line == line else 1
            row = row._replace(part=part)
        yield row


def _read_text(file: Path) -> Iterator[Row | Rejected]:
    source = ByteSource(file)
    head = source.head()
    if head:
        try:
            encoding = detect_encoding(head, whole=len(source.head(HEAD_BYTES + 1)) == len(head))
        except NotText as error:
            yield Rejected(str(file), 0, str(error), head)
            return
        yield from _TEXT_READERS[file_format(file)[0]](TextFile(str(file), source, encoding))
    if source.damage:
        yield Rejected(str(file), 0, source.damage, "")
    elif not head:
        yield Rejected(str(file), 0, "empty file", "")
