"""Messages of the protocol as a chat template reads them."""

import json
from collections.abc import Sequence
from typing import Any

from mengya.serve.api.bodies import Call, Message
from mengya.serve.api.errors import ApiError
from mengya.text.json_text import parse_json

_SYSTEM = ("system", "developer")


def as_conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Contents as text, arguments of calls as objects. What system and developer messages say, wherever they stand, is
    one system message at the beginning: many templates know no other. ApiError 400 that names the field."""
    system, others = [], []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        text = _text(message, where)
        if message.role in _SYSTEM:
            system.append(text)
        elif message.role == "user":
            others.append({"role": "user", "content": text})
        elif message.role == "assistant":
            others.append(_answer(message, text, where))
        elif message.role == "tool":
            named = {"tool_call_id": message.tool_call_id, "name": message.name}
            others.append({"role": "tool", "content": text} | {k: v for k, v in named.items() if v is not None})
        else:
            raise ApiError(
                400,
                f"{where}.role={message.role!r} is unknown; use system, developer, user, assistant or tool",
                param=f"{where}.role",
            )
    if not others:
        raise ApiError(400, "messages has nothing to answer; add a message of the user", param="messages")
    return ([{"role": "system", "content": "\n\n".join(filter(None, system))}] if any(system) else []) + others


def _text(message: Message, where: str) -> str:
    if message.content is None:
        if message.role != "assistant":
            raise ApiError(400, f"{where}.content is missing; give a text", param=f"{where}.content")
        return ""
    if isinstance(message.content, str):
        return message.content
    for number, part in enumerate(message.content):
        at = f"{where}.content[{number}]"
        if part.type == "text" and part.text is None:
            raise ApiError(400, f"{at}.text is missing; give a text", param=f"{at}.text")
        if part.type != "text":
            raise ApiError(
                400, f"{at}: parts of type {part.type!r} are not understood here; use text", param=f"{at}.type"
            )
    return "\n".join(part.text or "" for part in message.content)


def _answer(message: Message, text: str, where: str) -> dict[str, Any]:
    if message.function_call is not None:
        raise ApiError(400, f"{where}.function_call is outdated; use tool_calls", param=f"{where}.function_call")
    answer: dict[str, Any] = {"role": "assistant", "content": text}
    if message.tool_calls:
        answer["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(message.tool_calls)
        ]
    return answer


def _call(call: Call, where: str) -> dict[str, Any]:
    """Templates write arguments as JSON: a text would be written as JSON once more."""
    given = call.function.arguments
    try:
        arguments = parse_json(given) if isinstance(given, str) and given.strip() else given or {}
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        at = f"{where}.function.arguments"
        raise ApiError(400, f"{at} is not a JSON object; send what the assistant wrote", param=at)
    numbered = {"id": call.id} if call.id is not None else {}
    return {**numbered, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def history(message: str, before: Sequence[Message] | Sequence[Sequence[str]] | None) -> list[dict[str, Any]]:
    """The conversation of the older form: a question, and before it pairs of question and answer, or messages."""
    turns: list[Message] = []
    for turn in before or []:
        if isinstance(turn, Message):
            turns.append(turn)
        else:
            turns += [Message(role="user", content=turn[0]), Message(role="assistant", content=turn[1])]
    return as_conversation([*turns, Message(role="user", content=message)])


def as_arguments(value: dict[str, Any]) -> str:
    """Arguments as they go out: JSON in a text, Chinese as it is."""
    return json.dumps(value, ensure_ascii=False)
