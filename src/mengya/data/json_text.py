"""JSON as people write it, decoded."""

import json
from typing import Any

DECODER = json.JSONDecoder(strict=False)  # a raw tab or newline inside a string harms nobody


def parse_json(text: str) -> Any:
    """`json.loads`; every error is a ValueError whose message has no position, so that reasons can be counted."""
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise invalid(error) from error


def invalid(error: Exception) -> ValueError:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number with too many digits"
    return ValueError(f"invalid JSON: {'nested too deeply' if isinstance(error, RecursionError) else reason}")
