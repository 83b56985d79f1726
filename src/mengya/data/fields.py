"""The names under which people publish the parts of a row, and a row that knows which of its fields were read."""

import ast
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from mengya.text.json_text import parse_json


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LISTS = _names("messages conversations conversation dialogue dialog turns 对话")
LOOSE_LISTS = _names("data items chat chats session rounds utterances talk plain_text")
"""Names under which a list of strings or of pairs, or a text, is a conversation, if the row holds no other."""
ROLES = _names("role from speaker sender author 角色")
CONTENTS = _names("content value message text utterance parts 内容")
INSTRUCTIONS = _names("instruction 指令")
PROMPTS = _names("instruction prompt question query problem ask human user q inputs 指令 问题 题目 提问 问")
INPUTS = _names("input 输入")
ANSWERS = _names("output response solution answer target completion assistant reply gpt bot a 输出 回答 答案 回复 答")
CONTEXTS = _names("context passage background document article paragraph 上下文 材料 阅读材料 文章 背景 原文 段落")
THOUGHTS = _names(
    "reasoning_content reasoning thinking thought thoughts think cot complex_cot chain_of_thought"
    " 思考 思考过程 推理过程"
)
HISTORIES = _names("history 历史")
SYSTEMS = _names("system system_prompt systeminstruction system_instruction meta_instruction 系统")
OPTIONS = _names("options choices 选项")
TOOLS = _names("tools functions")
CHOSEN = _names("chosen response_chosen chosen_response answer_chosen preferred_output pos_resp better win")
REJECTED = _names(
    "rejected response_rejected rejected_response answer_rejected rejected_messages non_preferred_output neg_resp"
    " worse lose"
)
LABELS = _names("label kto_tag")
TEXTS = _names(
    "text content body document doc article passage paragraph raw_content story"
    " 正文 内容 文本 文章 全文 段落 paragraphs sentences sections lines"
)
LEARNT = _names("loss weight train training train_on_turn trainable output_with_loss loss_scale")
"""Flags that say whether a turn, or a row, is learnt."""
LEARNT_PARTS = _names("train_detail training_detail")
"""Lists of such flags for parts of a turn."""
PICTURES = re.compile(r"(?:images?|imgs?|pictures?|audios?|videos?)(?:_(?:paths?|urls?|files?|list))?")

_SUFFIX = re.compile(r"(.+?)_((?:zh|cn|en)(?:_\w{2,4})?|chinese|english|text|str)")


def is_filled(value: Any) -> bool:
    """Whether there is anything in a field: not None, NaN, white space, or an empty list or object."""
    if isinstance(value, str):
        return bool(value.strip())
    return value not in (None, [], {}) and value == value


@dataclass
class Notes:
    """What became of one row. Fields of turns are named `messages.name`."""

    read: set[str] = field(default_factory=set)
    not_read: set[str] = field(default_factory=set)
    lost_turns: int = 0
    """Turns with words that cannot be trained on: before the first question, or after the last answer."""

    @property
    def partly(self) -> bool:
        return bool(self.not_read or self.lost_turns)


class Fields:
    """An object by field names, in lower case and without spaces around them.

    Where a row has no `instruction`, its `instruction_zh` counts as one, and so with the other names of a language.
    """

    def __init__(self, row: Mapping[Any, Any], notes: Notes, prefix: str = ""):
        self._notes, self._prefix = notes, prefix
        self._values: dict[str, Any] = {}
        self._keys: dict[str, str] = {}
        for key, value in row.items():
            name = str(key).strip("\ufeff\u200b \t\r\n").lower().replace("-", "_").replace(" ", "_")
            if not is_filled(self._values.get(name)):
                self._values[name], self._keys[name] = value, str(key)
            elif is_filled(value) and value != self._values[name]:  # such as "Question" beside "question"
                notes.not_read.add(prefix + str(key))
        self._suffixed: dict[str, list[str]] = {}
        for name in self._values:
            if match := _SUFFIX.fullmatch(name):
                self._suffixed.setdefault(match[1], []).append(match[2])
        exact = any(is_filled(self._values.get(name)) for name in (*LISTS, *PROMPTS, *INPUTS))
        asked = [ending for name in (*PROMPTS, *INPUTS) for ending in self._suffixed.get(name, [])]
        self._language = asked[0] if asked and not exact else ""

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self):
        return iter(self._values)

    def place(self, name: str) -> str:
        """A field as notes name it."""
        return self._prefix + self._keys[name]

    def find(self, names: tuple[str, ...]) -> str | None:
        """The first of `names` (or its form of another language) that is filled, else that is there; or None."""
        language = [f"{name}_{self._language}" for name in names if self._language]
        others = [f"{name}_{ending}" for name in names for ending in self._suffixed.get(name, [])]
        found = [name for name in (*language, *names, *others) if name in self._values]
        return next((name for name in found if is_filled(self._values[name])), found[0] if found else None)

    def get(self, name: str) -> Any:
        """A field's value, which is read by it."""
        self._notes.read.add(self.place(name))
        return self._values[name]

    def peek(self, name: str) -> Any:
        """A field's value; the field still counts as not read."""
        return self._values[name]

    def first(self, names: tuple[str, ...]) -> Any:
        """The first of `names` that is filled; else "" if one is there but empty; else None."""
        name = self.find(names)
        if name is None:
            return None
        value = self.get(name)
        return value if is_filled(value) else ""

    def unread(self) -> list[str]:
        """Names of the filled fields that nothing has read so far."""
        return [n for n, v in self._values.items() if is_filled(v) and self.place(n) not in self._notes.read]

    def close(self) -> None:
        """Note the fields that nothing has read."""
        self._notes.not_read.update(self.place(name) for name in self.unread())


def thought_in(value: Any) -> str:
    """A thought; "" for a flag that says whether there is one."""
    flag = not isinstance(value, str) or value.strip().lower() in ("on", "off", "true", "false", "yes", "no", "none")
    return "" if flag else plain_text(value)


def plain_text(value: Any) -> str:
    """A single value as text: "" for none, `true`, `7` for 7.0; ValueError for lists and objects."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, list | dict | tuple):
        raise ValueError("content that is not text")
    return str(value).strip()


def as_json(value: Any) -> str:
    """An object as text, as a model is to read or write it; text as it is."""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_written)


def _written(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)


_LIKE_MESSAGES = re.compile(
    r"""\[\s*\{\s*["'](?:role|from|content|value|speaker)["']\s*:|\{\s*["'](?:messages|conversations)["']\s*:"""
)
_ESCAPE, _ESCAPES = re.compile(r"\\(.)", re.DOTALL), frozenset("\\'\"abfnrtvxuNU01234567\n")
_BETWEEN = re.compile(r"\}\s+\{")


def structured(value: Any) -> Any:
    """The list or object that a text holds as JSON or as Python writes it, as tables have them; else `value` itself.

    ValueError for what looks like messages and can be read neither way.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] not in ("[", "{"):
        return value
    try:
        return parse_json(text)
    except ValueError:
        pass
    # Escapes that Python never writes: parsing them would only print warnings.
    if "'" in text and all(match[1] in _ESCAPES for match in _ESCAPE.finditer(text)):
        for form in (text, _BETWEEN.sub("}, {", text)):  # NumPy writes a list of objects without commas
            try:
                return ast.literal_eval(form)
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                continue
    if _LIKE_MESSAGES.match(text):
        raise ValueError("messages written as text that is neither JSON nor Python")
    return value


def without_nulls(value: Any) -> Any:
    """Without the fields that are None: columnar files give every object the fields of all others."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def of_columns(value: Any) -> list[dict[str, Any]] | None:
    """The rows of an object whose values are lists of one length, as some tools store a list of objects; or None."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(v, list) for v in value.values()):
        return None
    if len({len(column) for column in value.values()}) != 1:
        return None
    return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
