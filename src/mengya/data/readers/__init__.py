"""Rows out of files of every supported format, streaming; a malformed row comes as a value, too.

Encoding is UTF-8 (with or without byte order mark) or GB18030, decided per file. Lines end at \\n only: U+2028 and the
like are ordinary characters.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mengya.data.fields import without_nulls
from mengya.data.files import TAGGED, ByteSource, NotText, TextSource, file_format
from mengya.data.readers.json_rows import begins_with_objects, read_json
from mengya.data.readers.layouts import spread
from mengya.data.readers.plain import read_plain
from mengya.data.readers.rows import Rejected, Row, TextFile
from mengya.data.readers.table import read_table
from mengya.data.readers.tagged import begins_with_tags, read_tagged
from mengya.errors import UserError

__all__ = ["Rejected", "Row", "read_rows"]

_TEXT_READERS: dict[str, Callable[[TextFile], Iterator[Row | Rejected]]] = {
    ".txt": read_plain,
    ".md": read_plain,
    ".jsonl": lambda text: spread(read_json(text)),
    ".json": lambda text: spread(read_json(text)),
    ".csv": lambda text: read_table(text, ","),
    ".tsv": lambda text: read_table(text, "\t"),
    **dict.fromkeys(TAGGED, read_tagged),
}


def read_rows(file: Path) -> Iterator[Row | Rejected]:
    """The rows of one file, in order.

    Plain text: one row if it is short, else pieces of at most `DOCUMENT_CHARS`, cut at a blank line, line, sentence or
    space where there is one; joined they are the file; but a .txt of JSON objects is read as JSON, and one of tokens
    and tags as .bio is. JSON: an array's elements, or one value after another; or what `spread` makes of them. CSV: the
    first line names the columns. A token and its tag a line (.bio, .conll, …): a sentence is {"text", "entities"}.
    Damaged data: the rows before the damage, and one `Rejected` for it.
    """
    line = part = 0
    read = _read_parquet if file_format(file)[0] == ".parquet" else _read_text
    for row in read(file):
        if isinstance(row, Row):
            line, part = row.line, part + 1 if row.line == line else 1
            row = row._replace(part=part)
        yield row


def _read_text(file: Path) -> Iterator[Row | Rejected]:
    source = TextSource(file)
    head = b""
    try:
        head, whole = source.head()
        if head:
            kind = file_format(file)[0]
            start = head.decode(source.encoding, "replace") if kind in (".txt", ".tsv") else ""
            if kind == ".txt" and begins_with_objects(start, whole):
                kind = ".jsonl"
            elif start and begins_with_tags(start, whole):
                kind = TAGGED[0]
            yield from _TEXT_READERS[kind](TextFile(str(file), source))
    except NotText as error:
        yield Rejected(str(file), 0, str(error), head)
        return
    if source.damage or not head:
        yield Rejected(str(file), 0, source.damage or "empty file", "")


def _read_parquet(file: Path) -> Iterator[Row | Rejected]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{file}: reading Parquet needs pyarrow; pip install 'mengya[parquet]'") from error
    number = 0
    compressed = bool(file_format(file)[1])
    with tempfile.TemporaryFile() as unpacked:
        if compressed:  # Parquet is read from its end, so that it must lie unpacked somewhere
            unpacked.writelines(ByteSource(file))
        try:
            table = pyarrow.parquet.ParquetFile(unpacked if compressed else file, pre_buffer=False)
            for batch in table.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(str(file), number, {name: without_nulls(cell) for name, cell in value.items()})
        except (pyarrow.ArrowException, OSError) as error:
            yield Rejected(str(file), number, "damaged Parquet file", str(error))
