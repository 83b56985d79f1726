"""Conversations out of the shapes in which people publish them: one list of {"role", "content"} messages for all."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from mengya.data.cleaning import strip_controls
from mengya.data.files import Paths
from mengya.data.quarantine import Quarantine
from mengya.data.readers import Rejected, Row, read_rows
from mengya.data.readers.json_rows import parse_json
from mengya.text.chat import Message

T = TypeVar("T")
Turn = tuple[str | None, str]
"""(the speaker's name as the data has it, None if it has none; what was said)"""

SPEAKERS = {
    name: role
    for role, names in {
        "system": "system developer 系统",
        "user": "user human usr client customer patient question query prompt instruction q"
        " 用户 客户 顾客 患者 病人 来访者 求助者 学生 人类 问 问题 提问 甲",
        # In task-oriented corpora the machine's side is called "sys"; the prompt is always called "system" in full.
        "assistant": "assistant gpt chatgpt bot ai model sys counselor counsellor therapist doctor lawyer agent"
        " answer response function_call tool_call a"
        " 助手 助理 机器人 客服 律师 医生 咨询师 心理咨询师 老师 答 回答 答案 回复 乙",
        "tool": "tool function observation tool_response function_response ipython 工具",
    }.items()
    for name in names.split()
}

LIST_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "对话")
ROLE_FIELDS = ("role", "from", "speaker", "角色")
CONTENT_FIELDS = ("content", "value", "message", "text", "utterance", "内容")
PROMPT_FIELDS = ("instruction", "prompt", "question", "query", "human", "user", "q", "指令", "问题", "提问", "问")
INPUT_FIELDS = ("input", "输入")
ANSWER_FIELDS = tuple(
    "output response answer target completion assistant reply gpt bot a 输出 回答 答案 回复 答".split()
)
HISTORY_FIELDS = ("history", "历史")
SYSTEM_FIELDS = ("system", "system_prompt", "系统")
TOOL_FIELDS = ("tools", "functions")


def read_parsed(paths: Paths, quarantine: Quarantine, parse: Callable[[Any], T]) -> Iterator[Row[T]]:
    """Every row of every file under `paths`, its value parsed; a row for which `parse` raises ValueError(reason) is
    quarantined."""
    for file in quarantine.files(paths):
        for row in quarantine.without(read_rows(file)):
            try:
                value = parse(row.value)
            except ValueError as error:
                quarantine.add(Rejected(row.file, row.line, str(error), row.value))
            else:
                yield row._replace(value=value)


def read_conversations(paths: Paths, quarantine: Quarantine) -> Iterator[Row[list[Message]]]:
    """The conversation in every row of every file under `paths`; rows without one are quarantined."""
    return read_parsed(paths, quarantine, parse_conversation)


def parse_conversation(value: Any) -> list[Message]:
    """The messages of one row: no empty ones, no two of one role in a row (they are joined by a newline), an optional
    system message, then a user's; the last one is an assistant's. ValueError(reason) if there is no answer in it.

    Shapes: a list of messages (role/content, from/value, {human, assistant} pairs, [human, assistant] pairs,
    alternating strings with or without "[speaker]") by itself or in one of `LIST_FIELDS`; or one question and answer
    in fields (`PROMPT_FIELDS`, `INPUT_FIELDS`, `ANSWER_FIELDS`), with `HISTORY_FIELDS` before; `SYSTEM_FIELDS` and
    `TOOL_FIELDS` on top.
    """
    messages = merge_turns(_all_messages(value))
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise ValueError("no answer after a question")
    return messages


def merge_turns(messages: list[Message]) -> list[Message]:
    """`messages` cleaned: control characters and empty ones removed, those of one role in a row joined, and what an
    assistant says before anybody asked left out."""
    merged: list[Message] = []
    asked = False
    for message in messages:
        role, content = message["role"], strip_controls(message["content"]).strip()
        asked = asked or (role == "user" and content != "")
        if not content or (role in ("assistant", "tool") and not asked):
            continue
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] += "\n" + content
        else:
            merged.append({"role": role, "content": content})
    return merged


def _all_messages(value: Any) -> list[Message]:
    if isinstance(value, str):
        raise ValueError("plain text, not a conversation")
    if isinstance(value, list):
        return list_messages(value)
    if not isinstance(value, dict):
        raise ValueError("neither an object nor a list")
    row = lower_fields(value)
    messages = prompt_messages(row)
    if messages[-1]["role"] == "assistant" and not _is_filled(first_field(row, HISTORY_FIELDS)):
        # A list that is complete by itself; other fields are about it.
        return messages
    answer = first_field(row, ANSWER_FIELDS)
    if isinstance(answer, list | dict):
        items = [answer] if isinstance(answer, dict) else answer
        if any(isinstance(item, str) for item in items):
            raise ValueError("several answers in one row: preference data")
        return messages + list_messages(items)
    return [*messages, {"role": "assistant", "content": as_text(answer)}]


def prompt_messages(row: dict[str, Any]) -> list[Message]:
    """Everything in a row of lower-case fields except the final answer: system, tools, history, and either the list of
    messages or the question. ValueError if it has neither."""
    messages = system_messages(row)
    listed = next((found for name in LIST_FIELDS if (found := _as_list(row.get(name)))), None)
    if listed is not None:
        return messages + list_messages(listed)
    history = first_field(row, HISTORY_FIELDS)
    if _is_filled(history):
        turns = _as_list(history)
        if turns is None:
            raise ValueError("a history that is not a list")
        messages += list_messages(turns)
    prompt = first_field(row, PROMPT_FIELDS)
    if isinstance(prompt, list):
        return messages + list_messages(prompt)
    question = "\n".join(filter(None, (as_text(prompt), as_text(first_field(row, INPUT_FIELDS)))))
    if not question and not _is_filled(history):
        known = (*PROMPT_FIELDS, *INPUT_FIELDS, *LIST_FIELDS)
        asked = any(name in row for name in known)
        raise ValueError("an empty question" if asked else "no field of a known conversation shape")
    messages.append({"role": "user", "content": question})
    return messages


def list_messages(items: list[Any]) -> list[Message]:
    """The messages in a list of any of the shapes, roles mapped; ValueError for an item of another shape or an unknown
    role."""
    if items and all(isinstance(item, str) for item in items):
        return _map_roles(_prefixed(items) or [(None, item) for item in items])
    turns: list[Turn] = []
    for item in items:
        if isinstance(item, dict):
            turns.extend(_dict_turns(lower_fields(item)))
        elif isinstance(item, list) and len(item) == 2:
            turns += [("user", as_text(item[0])), ("assistant", as_text(item[1]))]
        else:
            raise ValueError("a turn that is neither a message nor a pair")
    return _map_roles(turns)


def _dict_turns(item: dict[str, Any]) -> list[Turn]:
    if not any(name in item for name in CONTENT_FIELDS) and "tool_calls" not in item:
        pair: list[Turn] = [(name, as_text(said)) for name, said in item.items() if name in SPEAKERS]
        if not pair:
            raise ValueError("a turn without content")
        return pair
    calls = [call.get("function", call) for call in item.get("tool_calls") or [] if isinstance(call, dict)]
    texts = [as_text(first_field(item, CONTENT_FIELDS)), *(json.dumps(call, ensure_ascii=False) for call in calls)]
    speaker = first_field(item, ROLE_FIELDS)
    return [(None if speaker is None else str(speaker).strip().lower(), "\n".join(filter(None, texts)))]


def _map_roles(turns: list[Turn]) -> list[Message]:
    """Speakers to roles by `SPEAKERS`. Without names, or with two unknown ones, who speaks first is the user; one
    unknown name is the partner of the known one; a "system" that answers where nobody else does is the assistant."""
    names = list(dict.fromkeys(speaker for speaker, _ in turns))
    if names in ([], [None]):
        return [{"role": ("user", "assistant")[i % 2], "content": said} for i, (_, said) in enumerate(turns)]
    roles: dict[str | None, str] = {name: SPEAKERS[name] for name in names if name in SPEAKERS}
    parties = [name for name in names if roles.get(name) not in ("system", "tool")]
    unknown = [name for name in parties if name not in roles]
    if unknown:
        if None in names or len(parties) != 2:
            raise ValueError("a turn without a role" if None in names else "an unknown role name")
        if len(unknown) == 2:
            roles |= zip(parties, ("user", "assistant"), strict=True)
        else:
            (known,) = (roles[name] for name in parties if name in roles)
            roles[unknown[0]] = "user" if known == "assistant" else "assistant"
    elif "assistant" not in roles.values() and roles[names[0]] != "system":
        roles = {name: "assistant" if role == "system" else role for name, role in roles.items()}
    return [{"role": roles[speaker], "content": said} for speaker, said in turns]


_PREFIX = re.compile(r"\s*(?:[\[【(（]\s*([^\]】)）\n]{1,12}?)\s*[\]】)）]\s*[:：]?|([^\s:：\[【]{1,12})\s*[:：])\s*")


def _prefixed(items: list[str]) -> list[Turn] | None:
    """Turns out of "[speaker] words" or "speaker: words"; None unless all strings begin with a name from `SPEAKERS`."""
    turns = []
    for item in items:
        match = _PREFIX.match(item)
        name = (match[1] or match[2]).lower() if match else ""
        if match is None or name not in SPEAKERS:
            return None
        turns.append((name, item[match.end() :]))
    return turns


def system_messages(row: dict[str, Any]) -> list[Message]:
    """One system message, perhaps empty: the row's system prompt, and the tools that it offers."""
    system = [as_text(first_field(row, SYSTEM_FIELDS))]
    tools = first_field(row, TOOL_FIELDS)
    if _is_filled(tools):
        text = tools.strip() if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
        system += ["# Tools\n" + text] if text not in ("", "[]", "{}", "null") else []
    return [{"role": "system", "content": "\n\n".join(filter(None, system))}]


def lower_fields(row: dict[Any, Any]) -> dict[str, Any]:
    """`row` with its field names in lower case and without spaces around them."""
    return {str(name).strip().lower(): value for name, value in row.items()}


def first_field(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The first of `names` that is filled; else None, or "" if one is there but empty."""
    filled = next((row[name] for name in names if _is_filled(row.get(name))), None)
    return "" if filled is None and any(name in row for name in names) else filled


def as_text(value: Any) -> str:
    """A message's content as text: parts of type "text" are joined; ValueError for pictures and the like."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str | int | float):
        return str(value).strip()
    texts: list[str] = []
    for part in value if isinstance(value, list) else [value]:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise ValueError("content that is not text")
        texts.append(text)
    return "\n".join(texts)


def _is_filled(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], {})


def _as_list(value: Any) -> list[Any] | None:
    """`value` if it is a list, also one written as JSON in a table's cell."""
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[[", '["'):
        with suppress(ValueError):
            value = parse_json(value)
    return value if isinstance(value, list) else None
