"""Tools, their calls and results: as words, and as the fields that chat templates read.

As words they stand in a message's content, in the form of our template, of Qwen's and of the Hermes data sets. That is
how data is read; a template that has a form of its own gets fields, and so writes a call as its model learnt it.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from mengya.text.json_text import parse_json

OFFER = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""What a system prompt says of tools, a line of JSON each."""

_HEAD, _TAIL = OFFER.format(tools="\0").split("\0")
_CALL = ("<tool_call>", "</tool_call>")

TRIAL = [
    {"role": "system", "content": OFFER.format(tools='{"name": "seed", "description": "", "parameters": {}}')},
    {"role": "user", "content": "mengya"},
    {"role": "assistant", "content": '<tool_call>\n{"name": "sprout", "arguments": {"in": "soil"}}\n</tool_call>'},
    {"role": "tool", "content": "leaf"},
]
TRIAL_WORDS = ("seed", "sprout", "soil", "leaf")
"""What a template that knows tools writes of `TRIAL`."""


def has_words(messages: Sequence[Mapping]) -> bool:
    """Whether there may be tools or calls as words in the messages."""
    return any("<tool" in str(m.get("content")) for m in messages if m["role"] in ("system", "assistant"))


def as_fields(messages: Sequence[Mapping]) -> tuple[list[dict[str, Any]], list[dict] | None]:
    """`messages` with the calls at the end of an answer as "tool_calls", numbered, their results with the number, and
    the tools that the system prompt offers. What is not written exactly so stays as it is."""
    plain: list[dict[str, Any]] = []
    open_calls: list[str] = []
    tools, numbers = None, count(1)
    for message in map(dict, messages):
        content = message.get("content")
        if message["role"] == "system" and tools is None and isinstance(content, str):
            message["content"], tools = _offered(content)
        elif message["role"] == "assistant":
            open_calls = []
            if isinstance(content, str) and not message.get("tool_calls") and (found := _called(content)):
                said, calls = found
                open_calls = [f"call{next(numbers):05d}" for _ in calls]  # Mistral's template wants nine characters
                message |= {
                    "content": said,
                    "tool_calls": [
                        {"id": number, "type": "function", "function": call}
                        for number, call in zip(open_calls, calls, strict=True)
                    ],
                }
        elif message["role"] == "tool" and open_calls:
            message = {"tool_call_id": open_calls.pop(0)} | message
        if message["role"] != "system" or message.get("content") or not tools:
            plain.append(message)
    return plain, tools


def _offered(content: str) -> tuple[str, list[dict] | None]:
    """A system prompt without its offer of tools, and those."""
    before, _, rest = content.partition(_HEAD)
    lines, end, after = rest.partition(_TAIL)
    tools = [_object(line) for line in lines.split("\n")] if end else []
    if not tools or None in tools:
        return content, None
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools if tool]
    return "\n\n".join(filter(None, (before.strip(), after.strip()))), wrapped


def _called(content: str) -> tuple[str, list[dict]] | None:
    """An answer without the calls at its end, and those; None if there are none, or one is not JSON of a call."""
    begin, end = _CALL
    said, calls = content.rstrip(), []
    while said.endswith(end):
        said, _, written = said.removesuffix(end).rpartition(begin)
        call = _object(written)
        if call is None or call.keys() != {"name", "arguments"}:
            return None
        calls.append(_with_arguments(call))
        said = said.rstrip()
    return (said, calls[::-1]) if calls else None


def _object(text: str) -> dict | None:
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def with_arguments(message: Mapping) -> dict[str, Any]:
    """A message whose calls have objects as arguments, which the wire has as JSON: templates would write a text as JSON
    once more."""
    plain = dict(message)
    if isinstance(calls := plain.get("tool_calls"), Sequence):
        plain["tool_calls"] = [_with_arguments(call) for call in calls]
    return plain


def _with_arguments(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_arguments(call["function"])}
    given = call.get("arguments", {})
    if given in (None, ""):
        return {**call, "arguments": {}}
    try:
        decoded = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return call
    return {**call, "arguments": decoded} if isinstance(decoded, Mapping) else call
