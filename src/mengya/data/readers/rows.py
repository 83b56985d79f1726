"""What a reader gives: rows and rejected rows; and what all readers of text share."""

from codecs import getincrementaldecoder
from collections.abc import Iterator
from io import BytesIO
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

from mengya.data.cleaning import repair_surrogates
from mengya.data.files import TextSource

T = TypeVar("T")
MAX_LINE_BYTES = 64 << 20
BAD_BYTES = "bytes that are not valid in the encoding of the file"


class Row(NamedTuple, Generic[T]):
    """One row: as it was stored (a string for plain text, else a JSON value or a table row {column: cell}), or what
    was parsed from it."""

    file: str
    line: int
    """Where the row starts, from 1 (the row's number in a Parquet file)."""
    value: T
    part: int = 1
    """Number of the row among those that start on this line."""
    partly: bool = False
    """Whether something in it was not read."""
    around: tuple[str, ...] = ()
    """Of a file's first row: the filled fields that stand beside the key under which the file has its rows."""

    @property
    def origin(self) -> tuple[str, str]:
        """(source, id): the id is unique in its file, "12", or "12.3" for the third row that starts on line 12."""
        return self.file, str(self.line) if self.part == 1 else f"{self.line}.{self.part}"


class Rejected(NamedTuple):
    """A row that cannot be used. There are few different reasons: details belong into `raw`."""

    file: str
    line: int
    """From 1; 0 stands for the file as a whole."""
    reason: str
    raw: Any
    """Bytes, text or a value."""
    partly: bool | None = None
    """Whether the row had been counted as read partly; None: it had not been counted as used at all."""


class TextFile(NamedTuple):
    """An opened text file."""

    file: str
    source: TextSource


def iter_lines(text: TextFile) -> Iterator[tuple[int, bytes] | Rejected]:
    """(number, line with its \\n); lines over `MAX_LINE_BYTES` and a line that damage cut off are rejected."""
    number, size = 1, 0  # of the line that is being put together from `parts`
    parts: list[bytes] = []
    too_long = f"line longer than {MAX_LINE_BYTES >> 20} MB"
    for part in chain.from_iterable(map(BytesIO, text.source)):
        parts.append(part)
        size += len(part)
        if size > MAX_LINE_BYTES:
            parts = [parts[0][:2000]]  # enough to recognise it
        if part.endswith(b"\n"):
            line = b"".join(parts)
            yield (number, line) if size <= MAX_LINE_BYTES else Rejected(text.file, number, too_long, line)
            number, size, parts = number + 1, 0, []
    if size > MAX_LINE_BYTES or (size and text.source.damage):
        reason = too_long if size > MAX_LINE_BYTES else "row cut off by damaged data"
        yield Rejected(text.file, number, reason, b"".join(parts))
    elif size:
        yield number, b"".join(parts)


def decoded(text: TextFile) -> Iterator[str]:
    """The text in pieces of any length; a byte that cannot be decoded becomes a lone surrogate."""
    decoder, encoding, first = None, "", True
    for chunk in text.source:
        if encoding != text.source.encoding:  # known from the first byte on that is not ASCII
            encoding = text.source.encoding
            decoder = getincrementaldecoder(encoding)("surrogateescape")
        assert decoder is not None
        piece = decoder.decode(chunk)
        yield piece.removeprefix("\ufeff") if first else piece
        first = first and not piece
    if decoder is not None:
        yield decoder.decode(b"", final=True)


def is_whole(text: str) -> bool:
    """Whether no byte failed to decode."""
    return repair_surrogates(text) == text
