"""The turns of a conversation, out of the shapes in which people write a list of them."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mengya.data import fields, tools
from mengya.data.fields import Fields, Notes, as_json, is_filled, of_columns, plain_text, structured, thought_in
from mengya.text.chat import Message


class Turn(NamedTuple):
    speaker: str | None
    """As the data names the one who speaks, in lower case; None if it does not."""
    said: str
    supervised: bool = True
    """False: what an assistant says here is context, and not learnt."""


SPEAKERS = {
    name: role
    for role, names in {
        "system": "system developer 系统",
        "user": "user human usr client customer patient question query prompt instruction input q"
        " 用户 客户 顾客 患者 病人 来访者 求助者 学生 人类 问 问题 提问 甲",
        # In task-oriented corpora the machine's side is called "sys"; the prompt is always called "system" in full.
        "assistant": "assistant gpt chatgpt bot moss commands ai model sys counselor counsellor therapist doctor lawyer"
        " agent answer response output function_call tool_call a"
        " 助手 助理 机器人 客服 律师 医生 咨询师 心理咨询师 老师 答 回答 答案 回复 乙",
        "tool": "tool function observation tool_response tool_responses function_response ipython 工具",
    }.items()
    for name in names.split()
}
_CALLERS = ("function_call", "tool_call")
_CALLS = ("tool_calls", "function_call")
_THOUGHT_PARTS = ("thinking", "reasoning", "thought")
_TEXT_PARTS = ("text", "input_text", "output_text")


def thinking(thought: str, said: str) -> str:
    """An answer with the thought that leads to it, as reasoning models write it (DeepSeek-R1, Qwen3).

    What such a model has said may lack the mark before the thought, as its prompt ended with it.
    """
    if "</think>" in said and "<think>" not in said:
        said = f"<think>\n{said.lstrip()}"
    if not thought or thought in said or said.lstrip().startswith("<think>"):
        return said
    return f"<think>\n{thought}\n</think>\n\n{said}".rstrip()


def list_messages(items: Any, notes: Notes, prefix: str = "", reasoning: bool = True) -> list[Message]:
    """The messages in a list of any of the shapes, roles mapped; ValueError for an item of another shape or an unknown
    role.

    Shapes: objects with role and content; with one key for each speaker; strings in turn; pairs of strings.
    `prefix`: how notes name the list. `reasoning`: whether thoughts are read.
    """
    items = as_items(items)
    if items and all(isinstance(item, str) for item in items):
        return map_roles(prefixed(items) or [Turn(None, item) for item in items])
    turns: list[Turn] = []
    roles = _role_fields(items)
    for item in items:
        if isinstance(item, dict):
            item = Fields(item, notes, prefix)
            turns.extend(_turns_of(item, reasoning, roles))
            item.close()
        elif isinstance(item, list | tuple) and len(item) == 2:
            turns += [Turn("user", plain_text(item[0])), Turn("assistant", plain_text(item[1]))]
        else:
            raise ValueError("a turn that is neither a message nor a pair")
    return map_roles(turns)


def as_items(value: Any) -> list[Any]:
    """The items of a list of turns: a list, the columns of one, an object around one, or one of turns. ValueError for
    others."""
    if isinstance(value, dict):
        around = next((value[name] for name in fields.LISTS if name in value), None)
        if around is not None:
            return as_items(structured(around))
        if value and all(isinstance(turn, dict) for turn in value.values()):  # MOSS: {"turn_1": {...}, "turn_2": ...}
            return list(value.values())
        columns = of_columns(value)
        return [value] if columns is None else columns
    if isinstance(value, list | tuple):
        conversations = [item for item in value if isinstance(item, list) and any(isinstance(m, dict) for m in item)]
        if len(conversations) > 1:
            raise ValueError("several conversations in one row: a row for each of them is needed")
        return conversations[0] if conversations and len(value) == 1 else list(value)
    raise ValueError("messages that are not a list")


def _role_fields(items: list[Any]) -> tuple[str, ...]:
    """`fields.ROLES`; or, where no item has one of them, the field whose values are all known speakers."""
    rows = [{str(k).strip().lower(): v for k, v in item.items()} for item in items if isinstance(item, dict)]
    if any(name in row for row in rows for name in fields.ROLES):
        return fields.ROLES
    common = [name for name in (rows[0] if rows else {}) if all(name in row for row in rows)]
    speakers = (n for n in common if all(str(row[n]).strip().lower() in SPEAKERS for row in rows))
    return (*fields.ROLES, *list(speakers)[:1])


def _turns_of(item: Fields, reasoning: bool, roles: tuple[str, ...]) -> list[Turn]:
    """The turns in one object: usually one; with a tool's call and result in one, or question and answer, two."""
    supervised = is_learnt(item)
    both = item.find((*fields.PROMPTS, *fields.INPUTS)) is not None and item.find(fields.ANSWERS) is not None
    if both and item.find(roles) is None:
        return _exchange(item, supervised, reasoning)
    if item.find((*fields.CONTENTS, *_CALLS, "observation", *fields.THOUGHTS)) is None:
        return _by_speakers(item, supervised)
    speaker = item.first(roles)
    name = None if speaker is None else str(speaker).strip().lower()
    said = item.first(fields.CONTENTS)
    if name in _CALLERS:
        return [Turn(name, tools.calls(said), supervised)]
    if SPEAKERS.get(str(name)) == "tool":
        return _tool_turns(name, item, said)
    thought, parts = _parts(said)
    if _is_thought(item):
        thought, parts = "\n".join(said for _, said in parts), []
    answers = reasoning and SPEAKERS.get(str(name), "assistant") == "assistant"
    thought = "\n".join(filter(None, (thought_in(item.first(fields.THOUGHTS)), thought))) if answers else ""
    # The text comes first, and the calls after it.
    called = [tools.calls(found) for found in map(item.first, [(key,) for key in _CALLS]) if is_filled(found)]
    texts = [said for kind, said in parts if kind == "said"]
    called += [said for kind, said in parts if kind == "call"]
    turns = [Turn(name, thinking(thought, "\n".join(filter(None, [*texts, *called]))), supervised)]
    if is_filled(offered := item.first(fields.TOOLS)):
        offer = tools.offer(offered)
        turns = [Turn(name, "\n\n".join(filter(None, (turns[0].said, offer))))] if name == "system" else turns
        turns += [Turn("system", offer)] if name != "system" else []
    results = [Turn("tool", said) for kind, said in parts if kind == "result"]
    return results + turns if SPEAKERS.get(str(name)) == "user" else turns + results


def _is_thought(item: Fields) -> bool:
    """Whether a message is a thought, as gpt-oss has it in a message of its own."""
    thought = "channel" in item and item.peek("channel") == "analysis"
    if thought:
        item.get("channel")  # so that it counts as read
    return thought


def _tool_turns(name: str | None, item: Fields, said: Any) -> list[Turn]:
    """A tool's result; with the arguments that it was given, the assistant's call before it."""
    turns = []
    given = item.first(("parameters", "arguments"))
    if is_filled(given):
        turns.append(Turn("assistant", tools.call({"name": item.first(("name",)) or "", "arguments": given})))
    result = said if is_filled(said) else item.first(("observation",))
    if isinstance(result, list) and all(map(_is_result, result)):
        result = "\n".join(said for _, said in _parts(result)[1])
    return [*turns, Turn(name, as_json(result) if isinstance(result, dict | list) else plain_text(result))]


def _is_result(part: Any) -> bool:
    return isinstance(part, dict) and ((part.get("type") == "text" and "text" in part) or "functionResponse" in part)


def _exchange(item: Fields, supervised: bool, reasoning: bool) -> list[Turn]:
    """The turns of an object with a question and an answer."""
    asked = (plain_text(item.first(names)) for names in (fields.PROMPTS, fields.INPUTS))
    thought = thought_in(item.first(fields.THOUGHTS)) if reasoning else ""
    return [
        Turn("system", plain_text(item.first(fields.SYSTEMS))),
        Turn("user", "\n".join(filter(None, asked))),
        Turn("assistant", thinking(thought, plain_text(item.first(fields.ANSWERS))), supervised),
    ]


_MOSS = re.compile(r"^<\|[\w ]+\|>: ?|\s*<eo\w>$")
"""What MOSS writes around the words of each speaker."""


def _by_speakers(item: Fields, supervised: bool) -> list[Turn]:
    """The turns of an object with a field for each speaker."""
    said = {name: _MOSS.sub("", plain_text(item.get(name))) for name in item if name in SPEAKERS}
    turns = [Turn(name, "" if words == "None" else words, supervised) for name, words in said.items()]
    if not turns:
        raise ValueError("a turn without content")
    return turns


def is_learnt(item: Fields) -> bool:
    """Whether a turn, or a row, is learnt, by the flags that people give it. ValueError for weights but 0 and 1, and
    for flags of parts of it."""
    learnt = True
    if any(name in item and is_filled(item.peek(name)) for name in fields.LEARNT_PARTS):
        raise ValueError("a turn of which only parts are to be learnt")
    for name in fields.LEARNT:
        flag = item.first((name,))
        if is_filled(flag):
            text = plain_text(flag).lower()
            if text not in ("true", "false", "1", "0"):
                raise ValueError("a weight that is neither 0 nor 1")
            learnt = learnt and text in ("true", "1")
    return learnt


def _parts(content: Any) -> tuple[str, list[tuple[str, str]]]:
    """(thought, [(kind, text)]) of a message's content; the kind is said, call or result. ValueError for pictures."""
    thoughts, parts = [], []
    for part in content if isinstance(content, list | tuple) else [content]:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if isinstance(part, dict) and part.get("thought") is True:  # Gemini
            thoughts.append(plain_text(part.get("text")))
        elif kind in _THOUGHT_PARTS:
            thoughts.append(next((plain_text(part[key]) for key in (*_THOUGHT_PARTS, "text") if key in part), ""))
        elif kind == "tool_use":
            parts.append(("call", tools.call(part)))
        elif isinstance(part, dict) and "functionCall" in part:
            parts.append(("call", tools.call(part["functionCall"])))
        elif isinstance(part, dict) and "functionResponse" in part:
            parts.append(("result", as_json(part["functionResponse"].get("response", ""))))
        elif kind == "tool_result":
            said = "\n".join(text for _, text in _parts(part.get("content"))[1])
            parts.append(("result", said))
        elif isinstance(part, dict):
            if kind not in _TEXT_PARTS or "text" not in part:
                raise ValueError("content that is not text")
            parts.append(("said", plain_text(part["text"])))
        else:
            parts.append(("said", plain_text(part)))
    return "\n".join(filter(None, thoughts)), parts


def map_roles(turns: Sequence[Turn]) -> list[Message]:
    """Speakers to roles by `SPEAKERS`. Without names, or with two unknown ones, who speaks first is the user; one
    unknown name is the partner of the known one; a "system" that answers where nobody else does is the assistant."""
    names = list(dict.fromkeys(turn.speaker for turn in turns))
    if names in ([], [None]):
        return [_message(("user", "assistant")[i % 2], turn) for i, turn in enumerate(turns)]
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
    return [_message(roles[turn.speaker], turn) for turn in turns]


def _message(role: str, turn: Turn) -> Message:
    message: Message = {"role": role, "content": turn.said}
    return message if turn.supervised or role != "assistant" else message | {"supervised": False}


_PREFIX = re.compile(r"\s*(?:[\[【(（]\s*([^\]】)）\n]{1,12}?)\s*[\]】)）]\s*[:：]?|([^\s:：\[【]{1,12})\s*[:：])\s*")


def prefixed(items: list[str]) -> list[Turn] | None:
    """Turns out of "[speaker] words" or "speaker: words"; None unless all strings begin with a name from `SPEAKERS`."""
    turns = []
    for item in items:
        match = _PREFIX.match(item)
        name = (match[1] or match[2]).lower() if match else ""
        if match is None or name not in SPEAKERS:
            return None
        turns.append(Turn(name, item[match.end() :]))
    return turns
