"""JSON: an array's elements, or one value a line."""

from collections.abc import Iterator
from typing import Any

from mengya.data.json_stream import iter_json, parse_json
from mengya.data.readers.rows import BAD_BYTES, Rejected, Row, TextFile, decoded, iter_lines


def read_lines(text: TextFile) -> Iterator[Row | Rejected]:
    for item in iter_lines(text):
        if isinstance(item, Rejected):
            yield item
            continue
        number, line = item
        try:
            content = line.decode(text.encoding).removeprefix("\ufeff")
        except UnicodeDecodeError:
            yield text.reject(number, BAD_BYTES, line)
            continue
        if content.isspace() or not content:
            continue
        try:
            value = _checked(parse_json(content.strip(" \t\r\n")))
        except ValueError as error:
            yield text.reject(number, str(error), content)
            continue
        yield Row(text.file, number, value)


def read_json(text: TextFile) -> Iterator[Row | Rejected]:
    if _is_line_wise(text.source.head(), text.encoding):
        yield from read_lines(text)
        return
    for line, value, error in iter_json(decoded(text)):
        try:
            if error:
                raise ValueError(error)
            row = _checked(value)
        except ValueError as problem:
            yield text.reject(line, str(problem), value)
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
    raise ValueError("a lone number, true, false or null is not a row")
