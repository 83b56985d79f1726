"""Conversations that are written as one text, with a mark before each turn."""

import re
from typing import NamedTuple

from mengya.data.turns import SPEAKERS, Turn


class _Style(NamedTuple):
    """How one family of texts marks its turns."""

    mark: re.Pattern[str]
    """Before a turn; its group is the speaker."""
    end: re.Pattern[str]
    """What may stand behind a turn and is not part of it."""
    plain: bool = False
    """The marks are words of prose as well: the text must begin with one, and each side has one name."""


_STYLES = (
    _Style(re.compile(r"<\|im_start\|>(\w+)\n"), re.compile(r"\s*<\|im_end\|>.*", re.DOTALL)),
    _Style(
        re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\s*"), re.compile(r"\s*<\|eot_id\|>.*", re.DOTALL)
    ),
    _Style(re.compile(r"\s*###[ \t]*(\w+)[ \t]*[:：]"), re.compile(r"\s*(?:</s>)?\s*$")),
    _Style(re.compile(r"(?:^|\n)[ \t]*(Human|User|USER|用户|问)[ \t]*[:：]"), re.compile(r"\s*$"), plain=True),
)
_PARTNERS = {"Human": "Assistant", "User": "Assistant", "USER": "ASSISTANT", "用户": "助手", "问": "答"}
_LLAMA = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=(?:</s>)?\s*(?:<s>)?\s*\[INST\]|$)", re.DOTALL)
_LLAMA_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


def turns_of(text: str) -> list[Turn] | None:
    """The turns of a text such as "Human: … Assistant: …", ChatML, Llama's [INST] or "### Instruction:"; None if it is
    not of a known style, or nobody asks in it."""
    turns = _of_llama(text) if "[INST]" in text else None
    for style in _STYLES if turns is None else ():
        turns = _of_style(text, style)
        if turns is not None:
            break
    asked = turns is not None and any(SPEAKERS.get(str(turn.speaker)) == "user" for turn in turns)
    return turns if asked else None


def _of_style(text: str, style: _Style) -> list[Turn] | None:
    first = style.mark.search(text)
    if first is None:
        return None
    mark = style.mark
    if style.plain:
        if text[: first.start()].strip():
            return None
        mark = re.compile(rf"(?:^|\n)[ \t]*({first[1]}|{_PARTNERS[first[1]]})[ \t]*[:：]")
    marks = [match for match in mark.finditer(text) if match[1].lower() in SPEAKERS]
    if not marks or marks[0].start() != first.start():
        return None
    turns = []
    if before := text[: first.start()].strip():
        turns.append(Turn("system", before))
    for match, following in zip(marks, [*marks[1:], None], strict=True):
        said = text[match.end() : following.start() if following else len(text)]
        turns.append(Turn(match[1].lower(), style.end.sub("", said, count=1).strip()))
    return turns


def _of_llama(text: str) -> list[Turn] | None:
    turns: list[Turn] = []
    for asked, answered in _LLAMA.findall(text):
        if system := _LLAMA_SYSTEM.match(asked):
            turns.append(Turn("system", system[1].strip()))
            asked = asked[system.end() :]
        turns += [Turn("user", asked.strip()), Turn("assistant", re.sub(r"\s*</s>\s*$", "", answered).strip())]
    return turns or None
