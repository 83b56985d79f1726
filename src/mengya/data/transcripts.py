"""Conversations that are written as one text, with a mark before each turn."""

import re
from typing import NamedTuple

from mengya.data import tools
from mengya.data.turns import SPEAKERS, Turn, prefixed


class _Style(NamedTuple):
    """How one family of texts marks its turns."""

    mark: re.Pattern[str]
    """Before a turn; its group is the speaker."""
    end: tuple[str, ...] = ()
    """What may stand behind a turn and is not part of it."""
    plain: bool = False
    """The marks are words of prose as well: the text must begin with one, and each side has one name."""


_STYLES = (
    _Style(re.compile(r"<\|im_start\|>(\w+)\r?\n"), ("<|im_end|>",)),
    _Style(re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>"), ("<|eot_id|>", "<|end_of_text|>")),
    _Style(
        re.compile(r"### ?(Human|Assistant|User|System|Instruction|Input|Response|Question|Answer) ?[:：]"), ("</s>",)
    ),
    _Style(re.compile(r"\[(Human|MOSS)\]: ?"), ("<eoh>", "<eoa>")),
    _Style(re.compile(r"(?:^|\n)(Human|User|USER|用户|问)[ \t]?[:：]"), ("</s>", "<|endoftext|>"), plain=True),
)
_PARTNERS = {"Human": "Assistant", "User": "Assistant", "USER": "ASSISTANT", "用户": "助手", "问": "答"}
_BEGINNINGS = ("<|begin_of_text|>", "<|endoftext|>", "<s>")
_PREFACE = "Below is an instruction"
"""What Alpaca's prompts begin with."""


def turns_of(text: str) -> list[Turn] | None:
    """The turns of a text such as "Human: … Assistant: …", ChatML, Llama's [INST] or "### Instruction:"; None if it is
    not of a known style, or nobody asks and answers in it. An answer that is still to come is an empty turn."""
    turns = _of_llama(text) if text.lstrip().removeprefix("<s>").lstrip().startswith("[INST]") else None
    for style in _STYLES if turns is None else ():
        turns = _of_style(text, style)
        if turns is not None:
            break
    roles = {SPEAKERS.get(str(turn.speaker)) for turn in turns or ()}
    return turns if {"user", "assistant"} <= roles else None


def prompt_of(text: str) -> list[Turn] | None:
    """The turns of a prompt that ends where the assistant is to answer; None if it is something else, such as a
    question about a conversation."""
    turns = turns_of(text)
    open_ended = turns and SPEAKERS.get(str(turns[-1].speaker)) == "assistant" and not turns[-1].said
    return turns[:-1] if turns and open_ended else None


def lines_of(text: str) -> list[Turn] | None:
    """The turns of a text of which every line begins with a speaker; None if it is something else."""
    lines = [line for line in text.split("\n") if line.strip()]
    return prefixed(lines) if len(lines) > 1 else None


def _of_style(text: str, style: _Style) -> list[Turn] | None:
    text = text.strip()
    for beginning in _BEGINNINGS:
        text = text.removeprefix(beginning).lstrip()
    first = style.mark.search(text)
    if first is None:
        return None
    before = text[: first.start()].strip()
    if before and (style.plain or _PREFACE not in before):
        return None
    mark = style.mark
    if style.plain:
        # hh-rlhf: a blank line stands before each turn, so that what is like a mark in a turn is none.
        break_ = r"\n\n" if f"\n\n{_PARTNERS[first[1]]}:" in text else r"\n"
        mark = re.compile(rf"(?:^|{break_})({first[1]}|{_PARTNERS[first[1]]}|FUNCTION RESPONSE)[ \t]?[:：]")
    marks = list(mark.finditer(text))
    turns = [Turn("system", before)] if before else []
    for match, following in zip(marks, [*marks[1:], None], strict=True):
        said = text[match.end() : following.start() if following else len(text)].strip()
        for end in style.end:
            said = said.removesuffix(end).rstrip()
        said, call, called = said.partition("<functioncall>")  # Glaive
        words = "\n".join(filter(None, (said.strip(), tools.calls(called) if call else "")))
        turns.append(Turn(match[1].lower().replace(" ", "_"), words))
    return turns if all(turn.speaker in SPEAKERS for turn in turns) else None


def _of_llama(text: str) -> list[Turn] | None:
    turns: list[Turn] = []
    for part in text.split("[INST]")[1:]:
        asked, mark, answered = part.partition("[/INST]")
        if not mark:
            return None
        head, mark, rest = asked.partition("<</SYS>>")
        if mark:
            turns.append(Turn("system", head.strip().removeprefix("<<SYS>>").strip()))
            asked = rest
        answered = answered.strip().removesuffix("<s>").rstrip().removesuffix("</s>").rstrip()
        turns += [Turn("user", asked.strip()), Turn("assistant", answered)]
    return turns or None
