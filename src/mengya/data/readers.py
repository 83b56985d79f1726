"""Rows and documents out of files of every supported format, streaming; what is malformed goes to the quarantine.

Encoding is UTF-8 (with or without byte order mark) or GB18030, decided per file. Lines end at \\n only: U+2028 and the
like are ordinary characters.
"""

import csv
import json
import os
import re
import tempfile
from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mengya.data.cleaning import repair_surrogates
from mengya.data.files import HEAD_BYTES, ByteSource, NotText, detect_encoding, file_format, find_files, scan_files
from mengya.data.json_stream import iter_json, parse_json
from mengya.data.quarantine import Quarantine
from mengya.errors import UserError

__all__ = ["Row", "find_files", "read_documents", "read_rows"]

MAX_LINE_BYTES = 64 << 20
MAX_CELL_CHARS = 16 << 20
DOCUMENT_CHARS = 1 << 16
"""Plain text is cut into documents of at most this many characters."""

TEXT_FIELDS = (
    *("text", "content", "body", "document", "doc", "article", "passage", "paragraph", "raw_content", "story"),
    *("正文", "内容", "文本", "文章", "全文", "段落"),
)
BAD_CHARS = 2000
"""At most this much of a line of plain text is quarantined for a bad byte."""
BAD_BYTES = "bytes that are not valid in the encoding of the file"


class Row(NamedTuple):
    """One row as it was stored: a string for plain text, else a JSON value or a table row {column: cell}.

    `line` counts from 1, and is where the row starts (the row's number in a Parquet file).
    """

    file: str
    line: int
    value: dict[str, Any] | list[Any] | str


class _Text(NamedTuple):
    """An opened text file."""

    file: str
    source: ByteSource
    encoding: str
    quarantine: Quarantine

    def reject(self, line: int, reason: str, raw: Any) -> None:
        self.quarantine.add(self.file, line, reason, raw)


def read_rows(file: Path, quarantine: Quarantine) -> Iterator[Row]:
    """The rows of one file, in order.

    Plain text: one row if it is short, else pieces of at most `DOCUMENT_CHARS`, cut at a blank line, line, sentence or
    space where there is one; joined they are the file. JSON: an array's elements, or one value a line. CSV: the first
    line names the columns. Damaged data: the rows before the damage, and an entry in the quarantine.
    """
    suffix = file_format(file)[0]
    if suffix == ".parquet":
        yield from _read_parquet(file, quarantine)
        return
    source = ByteSource(file)
    head = source.head()
    if head:
        try:
            encoding = detect_encoding(head, whole=len(source.head(HEAD_BYTES + 1)) == len(head))
        except NotText as error:
            quarantine.add(file, 0, str(error), head)
            return
        yield from _TEXT_READERS[suffix](_Text(str(file), source, encoding, quarantine))
    if source.damage:
        quarantine.add(file, 0, source.damage, "")
    elif not head:
        quarantine.add(file, 0, "empty file", "")


def _iter_lines(text: _Text) -> Iterator[tuple[int, bytes]]:
    """(number, line with its \\n); lines over `MAX_LINE_BYTES` and a line that damage cut off are quarantined."""
    number, size = 1, 0  # of the line that is being put together
    held: list[bytes] = []
    too_long = f"line longer than {MAX_LINE_BYTES >> 20} MB"
    for chunk in text.source:
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            if size + len(line) > MAX_LINE_BYTES:
                text.reject(number, too_long, held[0] if held else line)
            else:
                yield number, b"".join([*held, line, b"\n"])
            number, size = number + 1, 0
            held.clear()
        if rest:
            size += len(rest)
            held.append(rest)
            if size > MAX_LINE_BYTES:
                held[:] = [held[0][:2000]]  # enough to recognise it
    if size > MAX_LINE_BYTES:
        text.reject(number, too_long, held[0])
    elif size and text.source.damage:
        text.reject(number, "row cut off by damaged data", b"".join(held))
    elif size:
        yield number, b"".join(held)


def _decoded(text: _Text) -> Iterator[str]:
    """The text in pieces of any length; a byte that cannot be decoded becomes a lone surrogate."""
    decoder = getincrementaldecoder(text.encoding)("surrogateescape")
    first = True
    for chunk in text.source:
        piece = decoder.decode(chunk)
        yield piece.removeprefix("\ufeff") if first else piece
        first = first and not piece
    yield decoder.decode(b"", final=True)


def _is_whole(text: str) -> bool:
    """Whether no byte failed to decode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _original(text: str, encoding: str) -> bytes:
    return text.encode(encoding, "surrogateescape")


# --- plain text -------------------------------------------------------------------------------------------------------


def _read_plain(text: _Text) -> Iterator[Row]:
    held, line = "", 1
    for block in chain(_whole_lines(text), [None]):
        held += block or ""
        start = 0
        while len(held) - start > DOCUMENT_CHARS:
            end = _cut(held, start)
            yield Row(text.file, line, held[start:end])
            line += held.count("\n", start, end)
            start = end
        held = held[start:]
    if held:
        yield Row(text.file, line, held)


def _whole_lines(text: _Text) -> Iterator[str]:
    """The decoded text without its bad lines, in blocks; of a long bad line only the part around the bad byte goes."""
    rest, number = "", 1
    for piece in _decoded(text):
        end = piece.rfind("\n") + 1
        if not end and len(rest) + len(piece) < DOCUMENT_CHARS:
            rest += piece
            continue
        # No newline in sight: the line is longer than a document and will be cut anyway.
        end = end or len(piece)
        yield _without_bad_lines(rest + piece[:end], number, text)
        number += piece.count("\n")
        rest = piece[end:]
    yield _without_bad_lines(rest, number, text)


def _without_bad_lines(block: str, number: int, text: _Text) -> str:
    if _is_whole(block):
        return block
    kept = []
    for offset, line in enumerate(block.split("\n")):
        good = []
        for start in range(0, len(line), BAD_CHARS):
            part = line[start : start + BAD_CHARS]
            if _is_whole(part):
                good.append(part)
            else:
                text.reject(number + offset, BAD_BYTES, _original(part, text.encoding))
        if good or not line:
            kept.append("".join(good))
    return "\n".join(kept)


# Where a document may end, best first; each match ends at the cut.
_CUTS = (
    re.compile(r"\n[ \t\r\u3000]*\n"),
    re.compile(r"\n"),
    re.compile(r"""(?:[。！？!?；;…]|\.(?=\s))[”’」』）)"']*"""),
    re.compile(r"\s"),
)


def _cut(text: str, start: int) -> int:
    """The end of the document that begins at `start`: the last good place in the second half of what may fit."""
    limit = start + DOCUMENT_CHARS
    for pattern in _CUTS:
        ends = [match.end() for match in pattern.finditer(text, start + DOCUMENT_CHARS // 2, limit)]
        if ends:
            return ends[-1]
    return limit


# --- JSON -------------------------------------------------------------------------------------------------------------


def _read_lines(text: _Text) -> Iterator[Row]:
    for number, line in _iter_lines(text):
        try:
            content = line.decode(text.encoding).removeprefix("\ufeff")
        except UnicodeDecodeError:
            text.reject(number, BAD_BYTES, line)
            continue
        if content.isspace() or not content:
            continue
        try:
            value = _checked(parse_json(content.strip(" \t\r\n")))
        except ValueError as error:
            text.reject(number, str(error), content)
            continue
        yield Row(text.file, number, value)


def _read_json(text: _Text) -> Iterator[Row]:
    if _is_line_wise(text.source.head(), text.encoding):
        yield from _read_lines(text)
        return
    for line, value, error in iter_json(_decoded(text)):
        try:
            if error:
                raise ValueError(error)
            row = _checked(value)
        except ValueError as problem:
            text.reject(line, str(problem), value)
            continue
        yield Row(text.file, line, row)


def _is_line_wise(head: bytes, encoding: str) -> bool:
    """Whether a file called .json holds one value a line: its first line is an object, or an array that more lines
    follow."""
    first, _, rest = head.lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")
    try:
        value = parse_json(first.decode(encoding))
    except ValueError:
        return False
    return isinstance(value, dict) or (isinstance(value, list) and bool(rest.strip()))


def _checked(value: Any) -> dict[str, Any] | list[Any] | str:
    if isinstance(value, dict | list | str):
        return value
    raise ValueError("a lone number, true, false or null is no row")


# --- tables -----------------------------------------------------------------------------------------------------------


class _LineFeed:
    """Lines for `csv.reader`, which remembers those of the current record, so that they can be read again."""

    def __init__(self, text: _Text) -> None:
        self._lines = ((number, line.decode(text.encoding, "surrogateescape")) for number, line in _iter_lines(text))
        self._again: list[tuple[int, str]] = []  # last one first
        self.record: list[tuple[int, str]] = []

    def __iter__(self) -> "_LineFeed":
        return self

    def __next__(self) -> str:
        item = self._again.pop() if self._again else next(self._lines)
        self.record.append(item)
        return item[1]

    def retry(self) -> None:
        """Give the current record's lines, but for the first one, out again."""
        self._again.extend(reversed(self.record[1:]))
        del self.record[1:]


def _read_table(text: _Text, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL_CHARS)  # per process; the default of 128 KB is too small for documents
    feed = _LineFeed(text)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        feed.record.clear()
        try:
            cells = next(reader)
            problem = "not as many cells as the first row"
        except StopIteration:
            return
        except csv.Error as error:
            cells, problem = [""] * (len(header) + 1), str(error)
        if not header:
            header = [cell.removeprefix("\ufeff").strip() for cell in cells]
            continue
        line, raw = feed.record[0]
        if cells and len(cells) != len(header):
            feed.retry()  # a quote that is never closed would swallow the rows behind it
            cells = _lenient_cells(raw, delimiter)
        if len(cells) == len(header) and all(map(_is_whole, cells)):
            yield Row(text.file, line, dict(zip(header, cells, strict=True)))
        elif cells:
            reason = f"invalid CSV: {problem}" if len(cells) != len(header) else BAD_BYTES
            text.reject(line, reason, _original(raw, text.encoding))


def _lenient_cells(line: str, delimiter: str) -> list[str]:
    """The cells of one line whose quotes break the rules: plain text in .tsv, closed ones inside a cell in .csv."""
    if delimiter == "\t":
        return line.rstrip("\r\n").split("\t")
    try:
        return next(csv.reader([line])) if line.count('"') % 2 == 0 else [line]
    except csv.Error:
        return [line]


def _read_parquet(file: Path, quarantine: Quarantine) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{file}: reading Parquet needs pyarrow; pip install 'mengya[parquet]'") from error
    number = 0
    with tempfile.TemporaryFile() as unpacked:
        if file_format(file)[1]:  # Parquet is read from its end, so that it must lie unpacked somewhere
            source = ByteSource(file)
            unpacked.writelines(source)
        try:
            table = pyarrow.parquet.ParquetFile(unpacked if file_format(file)[1] else file, pre_buffer=False)
            for batch in table.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(str(file), number, value)
        except (pyarrow.ArrowException, OSError) as error:
            quarantine.add(file, number, "damaged Parquet file", str(error))


_TEXT_READERS: dict[str, Callable[[_Text], Iterator[Row]]] = {
    ".txt": _read_plain,
    ".md": _read_plain,
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".csv": lambda text: _read_table(text, ","),
    ".tsv": lambda text: _read_table(text, "\t"),
}


# --- documents --------------------------------------------------------------------------------------------------------


def read_all(paths: str | Path | list[str] | list[Path], quarantine: Quarantine) -> Iterator[Iterator[Row]]:
    """For each file under `paths`, its rows; files that no reader knows are counted in the quarantine."""
    found = scan_files(paths)
    quarantine.ignored.update(path.suffix.lower() for path in found.ignored)
    own = os.path.realpath(quarantine.path)  # left in the folder by an earlier run, and being written now
    return (read_rows(file, quarantine) for file in found.files if os.path.realpath(file) != own)


def read_documents(
    paths: str | Path | list[str] | list[Path], text_field: str | None, quarantine: Quarantine
) -> Iterator[str]:
    """The text of every row of every file, uncleaned but encodable.

    The field is `text_field`, or else decided once per file by its first rows: the first of `TEXT_FIELDS` that most of
    them have, or the string field that is longest on average. A row without text in that field is quarantined.
    """
    for rows in read_all(paths, quarantine):
        sample = _sample(rows)
        field = text_field or _choose_field(sample)
        for row in chain(sample, rows):
            value = row.value.get(field) if isinstance(row.value, dict) and field else row.value
            if not isinstance(value, str):
                named = f"the text field {field!r}" if field else "a text field"
                quarantine.add(row.file, row.line, f"no string in {named}; set text_field", row.value)
            elif not value or value.isspace():
                quarantine.add(row.file, row.line, "empty", row.value)
            else:
                yield repair_surrogates(value)


def _sample(rows: Iterator[Row]) -> list[Row]:
    """The first rows, few enough to hold."""
    sample: list[Row] = []
    size = 0
    for row in rows:
        sample.append(row)
        size += len(row.value) if isinstance(row.value, str) else len(json.dumps(row.value, default=str))
        if len(sample) == 64 or size > 1 << 20:
            break
    return sample


def _choose_field(sample: list[Row]) -> str | None:
    """None if no row of the sample has a string in any field (plain text, lists)."""
    rows = [row.value for row in sample if isinstance(row.value, dict)]
    filled: Counter[str] = Counter()
    lengths: Counter[str] = Counter()
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str) and value.strip():
                filled[name] += 1
                lengths[name] += len(value)
    known = {name.strip().lower(): name for name in reversed(list(filled)) if 2 * filled[name] >= len(rows)}
    for field in TEXT_FIELDS:
        if field in known:
            return known[field]
    return max(lengths, key=lambda name: lengths[name]) if lengths else None
