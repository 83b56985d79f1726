"""JSON as people write it, decoded."""

import json
from typing import Any


class KeyTwice(ValueError):
    """An object has one key twice, with different values: all but the last would be lost."""


def whole_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`dict(pairs)`; KeyTwice if something in them is lost by it."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if value not in ("", None, found[key]):
                raise KeyTwice(f"the field {key[:40]!r} stands twice in one object, with different values")
    return found


DECODER = json.JSONDecoder(strict=False)  # a raw tab or newline inside a string harms nobody
CAREFUL = json.JSONDecoder(strict=False, object_pairs_hook=whole_object)
"""Raises `KeyTwice`."""
MAX_DEPTH = 100
"""Lists and objects inside one another; deeper values, which no data need, would break what walks through them."""


def parse_json(text: str, decoder: json.JSONDecoder = DECODER) -> Any:
    """`json.loads`; every error is a ValueError whose message has no position, so that reasons can be counted."""
    try:
        value = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise invalid(error) from error
    check_depth(text, value)
    return value


def whole_characters(value: Any) -> Any:
    """`value` with U+FFFD for each surrogate without its other half: JSON can spell them, but no encoding has them."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {whole_characters(key): whole_characters(item) for key, item in value.items()}
    return [whole_characters(item) for item in value] if isinstance(value, list) else value


def check_depth(text: str, value: Any) -> None:
    """ValueError if the value that stands in `text` is nested too deeply."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for items in inner for item in items]
        if not level:
            return
    raise invalid(RecursionError())


def invalid(error: Exception) -> ValueError:
    """The error of a decoder, without its position."""
    if isinstance(error, KeyTwice):
        return error
    reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number with too many digits"
    return ValueError(f"invalid JSON: {'nested too deeply' if isinstance(error, RecursionError) else reason}")
