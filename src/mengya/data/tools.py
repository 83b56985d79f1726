"""Tools and their calls out of the shapes in which people write them, as words (see `mengya.text.tools`)."""

import json
from typing import Any

from mengya.data.fields import as_json, structured, without_nulls
from mengya.text.tools import OFFER


def offer(tools: Any) -> str:
    """What a system prompt says of the tools in a row: objects, also as JSON; "" if there are none."""
    tools = decoded(tools)
    listed = [decoded(tool) for tool in tools] if isinstance(tools, list) else [tools]
    lines = [as_json(without_nulls(tool)) for tool in listed if isinstance(tool, dict) and tool]
    return OFFER.format(tools="\n".join(lines)) if lines else ""


def call(value: Any) -> str:
    """One call: {"name", "arguments"} or {"function": {...}}, also as JSON; text that is neither, as it is."""
    value = decoded(value)
    if not isinstance(value, dict):
        return as_json(value)
    inner = decoded(value.get("function", value))
    inner = inner if isinstance(inner, dict) else value
    if "name" not in inner:
        return as_json(value)
    given = (inner[key] for key in ("arguments", "parameters", "input", "args") if inner.get(key) is not None)
    arguments = as_json(decoded(next(given, {}))) or "{}"  # a text is JSON already, and is not written so once more
    name = json.dumps(inner["name"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def calls(value: Any) -> str:
    """The calls of a turn: a list of them, or one, also as JSON."""
    value = decoded(value)
    return "\n".join(map(call, value if isinstance(value, list) else [value]))


def are_calls(value: Any) -> bool:
    """Whether it is a list of calls, also as JSON."""
    value = decoded(value)
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "name" in v for v in value)


def decoded(value: Any) -> Any:
    """What a text holds as JSON or as Python writes it; "None" is none; other text and values as they are."""
    if isinstance(value, str) and value.strip() in ("None", "null"):
        return ""
    try:
        return structured(value)
    except ValueError:
        return value
