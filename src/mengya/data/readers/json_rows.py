"""JSON: an array's elements, or one value a line; a big array is never in memory as a whole."""

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from mengya.data.readers.rows import BAD_BYTES, Rejected, Row, TextFile, decoded, is_whole, iter_lines
from mengya.text.json_text import CAREFUL, DECODER, KeyTwice, check_depth, invalid, parse_json

MAX_VALUE_CHARS = 1 << 25
"""Longest single value; about 64 MB of Chinese UTF-8, and the maximum in memory."""

_SEPARATORS = re.compile(r"[\s,\ufeff]*")
_MARGIN_CHARS = 200


def begins_with_objects(head: str, whole: bool) -> bool:
    """Whether a file that begins so holds JSON objects, one a line or in an array, whatever its name. `whole`: nothing
    follows."""
    if re.match(r"\ufeff?\s*\[\s*\{\s*\"", head):
        return True
    lines = head.lstrip("\ufeff").split("\n")
    first = [line for line in (lines if whole else lines[:-1])[:64] if line.strip()][:3]
    try:
        return bool(first) and all(isinstance(parse_json(line), dict) for line in first)
    except ValueError:
        return False


class Value(NamedTuple):
    """A decoded value; or, if `error` is set, the beginning of a text that could not be decoded, or is refused."""

    line: int
    value: Any
    error: str | None = None


def iter_json(pieces: Iterator[str]) -> Iterator[Value]:
    """The elements of the array, or the values written one after another, in the text that `pieces` make up.

    If elements start on lines of their own, only a malformed element is lost: the next one is where a line has the same
    indentation and first character. Otherwise the rest of the file is lost. Lone surrogates in the text, which stand
    for bytes that could not be decoded, make a value malformed. Memory: a few times the longest value, which has at
    most `MAX_VALUE_CHARS`.
    """
    buffer = _Buffer(pieces)
    buffer.skip_separators()
    in_array = buffer.peek() == "["
    if in_array:
        buffer.advance(1)
    while True:
        buffer.skip_separators()
        if not buffer.peek():
            if in_array:
                yield Value(buffer.line, "", "invalid JSON: the array is not closed, the file is cut off")
            return
        if in_array and buffer.peek() == "]":
            buffer.advance(1)
            buffer.skip_separators()
            if rest := buffer.peek(_MARGIN_CHARS):
                yield Value(buffer.line, rest, "invalid JSON: text after the end of the array")
            return
        line, margin = buffer.line, buffer.margin()
        try:
            yield buffer.take()
        except ValueError as error:
            raw = buffer.peek(_MARGIN_CHARS)
            found = buffer.resume_at(margin)
            consequence = "; the rest of the file is unusable" if in_array and not found else ""
            yield Value(line, raw, f"{error}{consequence}")
            if not found:
                return


class _Buffer:
    """A window on the text: `pos` is the next character to read and `line` its line number, from 1."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self.pieces = pieces
        self.text = ""
        self.pos = 0
        self.line = 1

    def more(self) -> bool:
        """At least double the unread text, so that the time for retries stays linear; False at the end of the text."""
        start = max(0, self.pos - _MARGIN_CHARS)  # `margin` looks back
        unread = [self.text[start:]]
        size = 0
        for piece in self.pieces:
            unread.append(piece)
            size += len(piece)
            if size >= len(unread[0]):
                break
        self.text = "".join(unread)
        self.pos -= start
        return size > 0

    def peek(self, count: int = 1) -> str:
        if self.pos == len(self.text):
            self.more()
        return self.text[self.pos : self.pos + count]

    def advance(self, count: int) -> None:
        self.line += self.text.count("\n", self.pos, self.pos + count)
        self.pos += count

    def skip_separators(self) -> None:
        while True:
            match = _SEPARATORS.match(self.text, self.pos)
            assert match is not None
            self.advance(match.end() - self.pos)
            if self.pos < len(self.text) or not self.more():
                return

    def margin(self) -> str:
        """What a line begins with when a value like the one at `pos` starts on it."""
        start = self.text.rfind("\n", 0, self.pos) + 1
        indentation = self.text[start : self.pos]
        return "\n" + ("" if indentation.strip() else indentation) + self.text[self.pos]

    def take(self) -> Value:
        """The value at `pos`, which moves behind it; ValueError, and `pos` stays, if it is malformed or too long."""
        decoder, refused = CAREFUL, None
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.pos)
            except KeyTwice as error:
                decoder, refused = DECODER, str(error)  # which finds its end
                continue
            except (ValueError, RecursionError) as error:
                if isinstance(error, json.JSONDecodeError):
                    if len(self.text) - self.pos > MAX_VALUE_CHARS:
                        raise ValueError(f"row longer than {MAX_VALUE_CHARS:,} characters") from error
                    # An error this near the end, or an open string, may be a value that goes on in the next piece.
                    cut_off = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - 12
                    if cut_off and self.more():
                        continue
                raise invalid(error) from error
            if end == len(self.text) and self.more():
                continue  # a number may go on
            written = self.text[self.pos : end]
            if not is_whole(written):
                raise ValueError(BAD_BYTES)
            check_depth(written, value)
            line = self.line
            self.advance(end - self.pos)
            return Value(line, written[:_MARGIN_CHARS] if refused else value, refused)

    def resume_at(self, margin: str) -> bool:
        """Move to the next place where a line begins with `margin` (which starts with the newline); False if there is
        none."""
        self.advance(1)
        while (found := self.text.find(margin, self.pos)) < 0:
            self.advance(max(0, len(self.text) - len(margin) - self.pos))
            if not self.more():
                return False
        self.advance(found + 1 - self.pos)
        return True


def read_lines(text: TextFile) -> Iterator[Row | Rejected]:
    for item in iter_lines(text):
        if isinstance(item, Rejected):
            yield item
            continue
        number, line = item
        try:
            content = line.decode(text.source.encoding).removeprefix("\ufeff")
            if content.strip():
                yield _row(text, number, parse_json(content.strip(" \t\r\n"), CAREFUL))
        except UnicodeDecodeError:
            yield Rejected(text.file, number, BAD_BYTES, line)
        except ValueError as error:
            yield Rejected(text.file, number, str(error), content)


def read_json(text: TextFile) -> Iterator[Row | Rejected]:
    """One value a line, or else an array's elements or values that span lines, whatever the file's name says."""
    if _is_line_wise(*text.source.head(), text.source.encoding):
        yield from read_lines(text)
        return
    for line, value, error in iter_json(decoded(text)):
        yield Rejected(text.file, line, error, value) if error else _row(text, line, value)


def _is_line_wise(head: bytes, whole: bool, encoding: str) -> bool:
    """Whether a file that begins with `head` has one value a line: at least half of its first lines are one."""
    lines = head.removeprefix(codecs.BOM_UTF8).split(b"\n")
    lines = [line for line in (lines if whole else lines[:-1])[:50] if line.strip()]
    found = 0
    for line in lines:
        with suppress(ValueError):
            found += isinstance(parse_json(line.decode(encoding)), dict | list)
    return 2 * found >= len(lines) > 0


def _row(text: TextFile, line: int, value: Any) -> Row | Rejected:
    if isinstance(value, dict | list | str):
        return Row(text.file, line, value)
    return Rejected(text.file, line, "a lone number, true, false or null is not a row", value)
