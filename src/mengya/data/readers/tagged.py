"""Sentences as columns: a token and its tag a line, a blank line between sentences."""

import re
from collections.abc import Iterator

from mengya.data.entities import NO_TAG, is_tag, of_tags
from mengya.data.readers.rows import BAD_BYTES, Rejected, Row, TextFile, iter_lines

MAX_TOKENS = 5000
"""More lines without a blank one are no sentence."""
_COMMENT = re.compile(r"-DOCSTART-.*|# id .*")
_LOOKED_AT = 200

Line = tuple[int, str | None]
"""Its number, and its text; None if it cannot be decoded."""


def begins_with_tags(head: str, whole: bool) -> bool:
    """Whether a text that begins so has a token and a tag a line, up to a few faulty ones. `whole`: nothing follows."""
    lines = head.removeprefix("\ufeff").split("\n", _LOOKED_AT)
    lines = [line.rstrip() for line in (lines if whole else lines[:-1])]
    lines = [line for line in lines if line and not _COMMENT.fullmatch(line)]
    if len(lines) < 2 or not _is_tagged(lines[0]):
        return False
    return 10 * sum(map(_is_tagged, lines)) >= 9 * len(lines)


def _is_tagged(line: str) -> bool:
    columns = _columns(line)
    return len(columns) > 1 and is_tag(columns[-1])


def _columns(line: str) -> list[str]:
    """The first is empty where the token is itself a space."""
    return re.split(r"[ \t]+", line)


def read_tagged(text: TextFile) -> Iterator[Row | Rejected]:
    """A row {"text", "entities"} for each sentence. A sentence with a faulty line is rejected, by that line."""
    lines: list[Line] = []
    for item in iter_lines(text):
        if isinstance(item, Rejected):
            yield item
            continue
        try:
            line: str | None = item[1].decode(text.source.encoding).removeprefix("\ufeff")
        except UnicodeDecodeError:
            line = None
        if line is None or line.strip():
            if len(lines) <= MAX_TOKENS:
                lines.append((item[0], line))
        elif lines:
            yield from _sentence(text.file, lines)
            lines = []
    if lines:
        yield from _sentence(text.file, lines)


def _sentence(file: str, lines: list[Line]) -> Iterator[Row | Rejected]:
    if len(lines) > MAX_TOKENS:
        start = "\n".join(line or "" for _, line in lines[:50])
        yield Rejected(file, lines[0][0], f"no blank line among {MAX_TOKENS:,} tokens", start)
        return
    rows = []
    for number, line in lines:
        if line is None:
            yield Rejected(file, number, BAD_BYTES, "")
            return
        line = line.rstrip()
        if _COMMENT.fullmatch(line):
            continue
        columns = _columns(line)
        if len(columns) == 1 or not is_tag(columns[-1]):
            reason = NO_TAG if len(columns) > 1 else "a line that is not a token and a tag"
            yield Rejected(file, number, reason, line)
            return
        rows.append(columns)
    if rows:
        first = 1 if _numbered(rows) else 0
        tokens = [columns[first] or " " for columns in rows]
        yield Row(file, lines[0][0], of_tags(_without_places(tokens), [columns[-1] for columns in rows]).row)


def _numbered(rows: list[list[str]]) -> bool:
    """Whether tokens are numbered from 1 in the first column, and stand in the second."""
    return all(len(columns) > 2 and columns[0] == str(number) for number, columns in enumerate(rows, 1))


def _without_places(tokens: list[str]) -> list[str]:
    """Characters that stand beside their place in a word (Weibo's 科0 技1 公0 司1), without it."""
    place = -1
    for token in tokens:
        if not re.fullmatch(r".[0-9]+", token) or int(token[1:]) not in (0, place + 1):
            return tokens
        place = int(token[1:])
    return [token[0] for token in tokens]
