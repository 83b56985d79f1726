"""Plain text, in pieces of the size of a document."""

import re
from collections.abc import Iterator

from mengya.data.readers.rows import BAD_BYTES, Rejected, Row, TextFile, decoded, is_whole

DOCUMENT_CHARS = 1 << 16
"""Plain text is cut into documents of at most this many characters."""
BAD_CHARS = 2000
"""At most this much of a line of plain text is rejected for a bad byte."""


def read_plain(text: TextFile) -> Iterator[Row | Rejected]:
    rest, line = "", 1
    for block in _whole_lines(text):
        if isinstance(block, Rejected):
            yield block
            continue
        rest += block
        start = 0
        while len(rest) - start > DOCUMENT_CHARS:
            end = _cut(rest, start)
            yield Row(text.file, line, rest[start:end])
            line += rest.count("\n", start, end)
            start = end
        rest = rest[start:]
    if rest:
        yield Row(text.file, line, rest)


def _whole_lines(text: TextFile) -> Iterator[str | Rejected]:
    """The decoded text without its bad lines, in blocks; of a long bad line only the part around the bad byte goes."""
    rest, number = "", 1
    for piece in decoded(text):
        end = piece.rfind("\n") + 1
        if not end and len(rest) + len(piece) < DOCUMENT_CHARS:
            rest += piece
            continue
        # No newline in sight: the line is longer than a document and will be cut anyway.
        end = end or len(piece)
        yield from _without_bad_lines(rest + piece[:end], number, text)
        number += piece.count("\n")
        rest = piece[end:]
    yield from _without_bad_lines(rest, number, text)


def _without_bad_lines(block: str, number: int, text: TextFile) -> Iterator[str | Rejected]:
    if is_whole(block):
        yield block
        return
    lines = []
    for offset, line in enumerate(block.split("\n")):
        good = []
        for start in range(0, len(line), BAD_CHARS):
            part = line[start : start + BAD_CHARS]
            if is_whole(part):
                good.append(part)
            else:
                yield Rejected(
                    text.file, number + offset, BAD_BYTES, part.encode(text.source.encoding, "surrogateescape")
                )
        if good or not line:
            lines.append("".join(good))
    yield "\n".join(lines)


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
