"""JSON as people write it, decoded."""

import json
from typing import Any

DECODER = json.JSONDecoder(strict=False)  # a raw tab or newline inside a string harms nobody
MAX_DEPTH = 100
"""Lists and objects inside one another; deeper values, which no data need, would break what walks through them."""


def parse_json(text: str) -> Any:
    """`json.loads`; every error is a ValueError whose message has no position, so that reasons can be counted."""
    try:
        value = DECODER.decode(text)
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
    reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number with too many digits"
    return ValueError(f"invalid JSON: {'nested too deeply' if isinstance(error, RecursionError) else reason}")
