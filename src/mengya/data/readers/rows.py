"""What a reader gives: rows, and what it rejects; and what all readers of text share."""

from codecs import getincrementaldecoder
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from mengya.data.files import ByteSource

T = TypeVar("T")
MAX_LINE_BYTES = 64 << 20
BAD_BYTES = "bytes that are not valid in the encoding of the file"


class Row(NamedTuple, Generic[T]):
    """One row: as it was stored (a string for plain text, else a JSON value or a table row {column: cell}), or what
    was made of it."""

    file: str
    line: int
    """Where the row starts, from 1 (the row's number in a Parquet file)."""
    value: T
    part: int = 1
    """Number of the row among those that start on this line."""

    @property
    def id(self) -> str:
        """Unique in its file: "12", or "12.3" for the third row that starts on line 12."""
        return str(self.line) if self.part == 1 else f"{self.line}.{self.part}"

    @property
    def origin(self) -> tuple[str, str]:
        """(source, id)"""
        return self.file, self.id


class Rejected(NamedTuple):
    """A row that cannot be used. Reasons are meant to be few: details belong into `raw`."""

    file: str
    line: int
    """From 1; 0 stands for the file as a whole."""
    reason: str
    raw: Any
    """Bytes, text or a value."""


class TextFile(NamedTuple):
    """An opened text file."""

    file: str
    source: ByteSource
    encoding: str

    def reject(self, line: int, reason: str, raw: Any) -> Rejected:
        return Rejected(self.file, line, reason, raw)


def iter_lines(text: TextFile) -> Iterator[tuple[int, bytes] | Rejected]:
    """(number, line with its \\n); lines over `MAX_LINE_BYTES` and a line that damage cut off are rejected."""
    number, size = 1, 0  # of the line that is being put together
    held: list[bytes] = []
    too_long = f"line longer than {MAX_LINE_BYTES >> 20} MB"
    for chunk in text.source:
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            if size + len(line) > MAX_LINE_BYTES:
                yield text.reject(number, too_long, held[0] if held else line)
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
        yield text.reject(number, too_long, held[0])
    elif size and text.source.damage:
        yield text.reject(number, "row cut off by damaged data", b"".join(held))
    elif size:
        yield number, b"".join(held)


def decoded(text: TextFile) -> Iterator[str]:
    """The text in pieces of any length; a byte that cannot be decoded becomes a lone surrogate."""
    decoder = getincrementaldecoder(text.encoding)("surrogateescape")
    first = True
    for chunk in text.source:
        piece = decoder.decode(chunk)
        yield piece.removeprefix("\ufeff") if first else piece
        first = first and not piece
    yield decoder.decode(b"", final=True)


def is_whole(text: str) -> bool:
    """Whether no byte failed to decode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def original(text: str, encoding: str) -> bytes:
    return text.encode(encoding, "surrogateescape")
