"""Preference pairs out of the shapes in which people publish them: a prompt, a chosen and a rejected answer."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from mengya.data import fields
from mengya.data.cleaning import strip_controls
from mengya.data.conversations import (
    looks_like_message,
    looks_like_messages,
    merge_turns,
    prompt_messages,
    read_parsed,
    refuse_pictures,
    structured_messages,
    system_messages,
)
from mengya.data.fields import Fields, Notes, is_filled, plain_text, structured
from mengya.data.files import Paths
from mengya.data.intake import Intake
from mengya.data.readers import Row
from mengya.data.transcripts import turns_of
from mengya.data.turns import list_messages, map_roles
from mengya.text.chat import Message


class Preference(NamedTuple):
    prompt: list[Message]
    """The last message is a user's or a tool's."""
    chosen: str
    """The better answer."""
    rejected: str


def read_preferences(paths: Paths, intake: Intake, reasoning: bool = True) -> Iterator[Row[Preference]]:
    """The pair in every row of every file under `paths`; rows without one are quarantined."""
    return read_parsed(paths, intake, lambda value, notes: parse_preference(value, notes, reasoning))


def parse_preference(value: Any, notes: Notes | None = None, reasoning: bool = True) -> Preference:
    """The pair in one row; ValueError(reason) if there is none. `notes` and `reasoning` as for `parse_conversation`.

    The answers are in `fields.CHOSEN` and `fields.REJECTED` (each a string, a message, or a whole conversation as
    messages or text), or in a list that is ranked best first or by scores beside it. The chosen one may also be the end
    of a conversation. The prompt is written as in a conversation, or is what two whole conversations have in common.
    """
    notes = Notes() if notes is None else notes
    value = structured(value)
    if not isinstance(value, dict):
        raise ValueError("not an object, so not a preference pair")
    row = Fields(value, notes)
    refuse_pictures(row)
    chosen, rejected = _answers(row)
    transcripts = _are_transcripts(row, chosen, rejected)
    before_rejected, worst = _split(rejected, notes, reasoning, "rejected.", transcripts)
    if chosen is None:  # it ends the conversation
        messages = prompt_messages(row, notes, reasoning)
        if messages[-1]["role"] != "assistant":
            raise ValueError("one answer of the pair is missing")
        messages, best = messages[:-1], messages[-1]["content"]
        if before_rejected and before_rejected != _before(messages):
            raise ValueError("chosen and rejected differ before their last answer")
    else:
        before_chosen, best = _split(chosen, notes, reasoning, "chosen.", transcripts)
        if before_chosen != before_rejected:
            raise ValueError("chosen and rejected differ before their last answer")
        messages = _begun(row, before_chosen, reasoning) if before_chosen else prompt_messages(row, notes, reasoning)
    row.close()
    prompt = [{k: v for k, v in message.items() if k != "supervised"} for message in merge_turns(messages, notes)]
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        raise ValueError("a prompt that does not end with a question" if prompt else "an empty question")
    best, worst = strip_controls(best).strip(), strip_controls(worst).strip()
    if not best or not worst:
        raise ValueError("an empty answer")
    if best == worst:
        raise ValueError("chosen and rejected are the same")
    return Preference(prompt, best, worst)


def _begun(row: Fields, before: list[Message], reasoning: bool) -> list[Message]:
    """The prompt of two whole conversations that both begin with `before`. A prompt beside them repeats a part of that,
    or says more: a system message, or earlier turns."""
    name = row.find(fields.PROMPTS)
    value = None if name is None else structured_messages(row.peek(name))
    told: list[Message] = [{"role": "user", "content": value}] if isinstance(value, str) else []
    if isinstance(value, list) or looks_like_message(value):
        told = _before(list_messages(value, Notes(), reasoning=reasoning))
    more = _stands_in(before, told[-len(before) :])
    if name is not None and told and (more or _stands_in(told, before)):
        row.get(name)
    return system_messages(row) + (told if more else before)


def _stands_in(part: list[Message], whole: list[Message]) -> bool:
    """Whether the messages of `part` follow one another somewhere in `whole`."""
    said, words = ([(m["role"], m["content"].strip()) for m in messages] for messages in (part, whole))
    return any(words[begin : begin + len(said)] == said for begin in range(len(words) - len(said) + 1))


def _are_transcripts(row: Fields, *answers: Any) -> bool:
    """Whether the answers are whole conversations, as texts; an answer may itself be a dialogue that was asked for."""
    if not all(isinstance(answer, str) and turns_of(answer) for answer in answers):
        return False
    prompt = row.find(fields.PROMPTS)
    return prompt is None or all(plain_text(row.peek(prompt)) in answer for answer in answers)


def _before(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message["content"]]


def _answers(row: Fields) -> tuple[Any, Any]:
    """(chosen, rejected); chosen is None if it is the last turn of the conversation in the row."""
    chosen, rejected = _alone(row.first(fields.CHOSEN)), _alone(row.first(fields.REJECTED))
    if any(isinstance(one, str) and _are_strings(other) for one, other in ((chosen, rejected), (rejected, chosen))):
        raise ValueError("several answers on one side of a pair: a row for each of them is needed")
    if is_filled(chosen) and is_filled(rejected):
        return chosen, rejected
    if is_filled(rejected):
        answer = row.find(fields.ANSWERS)
        if chosen is None and answer and is_filled(row.peek(answer)):
            return row.get(answer), rejected
        if chosen is None and row.find(fields.LISTS):
            if _are_strings(rejected):
                raise ValueError("several answers on one side of a pair: a row for each of them is needed")
            return None, rejected
    if chosen is not None and rejected is not None:
        raise ValueError("an empty answer")
    if chosen is not None or rejected is not None:
        raise ValueError("one answer of the pair is missing")
    if judged := _judged(row):
        return judged
    ranked = structured(row.first((*fields.ANSWERS, *_RANKED)))
    if isinstance(ranked, list) and not looks_like_messages(ranked):
        if len(ranked) < 2:
            raise ValueError("a ranking of fewer than two answers")
        return _best_and_worst(row, ranked)
    if any(isinstance(row.peek(name), bool) for name in fields.LABELS if name in row):
        raise ValueError("one answer with a label (KTO data) is not a pair")
    raise ValueError("no chosen and rejected answer")


def _alone(answer: Any) -> Any:
    """The answer in a list that has no other."""
    return answer[0] if _are_strings(answer) and len(answer) == 1 else answer


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


_RANKED = ("outputs", "responses", "answers", "completions", "candidates", "generations")
_SCORES = ("scores", "score", "ratings", "rating", "reward", "rewards", "reward_scores", "overall_score")
_RANKS = ("rank", "ranks", "ranking")


def _best_and_worst(row: Fields, ranked: list[Any]) -> tuple[Any, Any]:
    """By the numbers beside a list of answers, or in them, if there are some; else the first and the last."""
    numbers, sign = _numbers(row, ranked)
    if numbers is None:
        for name in row.unread():
            value = row.peek(name)
            listed = isinstance(value, list) and len(value) == len(ranked) and all(map(_is_number, value))
            if listed or name in _WINNERS:
                raise ValueError("a list of answers with a verdict that is not understood")
        return ranked[0], ranked[-1]
    numbers = [_number(text) for text in numbers]
    if len(numbers) != len(ranked) or not all(map(_is_number, numbers)):
        raise ValueError("a ranking without one number for each answer")
    if min(numbers) == max(numbers):
        raise ValueError("answers that are ranked as equals")
    order = sorted(range(len(ranked)), key=lambda i: sign * numbers[i])
    return _said(ranked[order[-1]]), _said(ranked[order[0]])


def _numbers(row: Fields, ranked: list[Any]) -> tuple[list[Any] | None, int]:
    """(what ranks the answers, 1 if more is better, else -1); None if nothing does."""
    for names, sign in ((_SCORES, 1), (_RANKS, -1)):
        numbers = structured(row.first(names))
        if isinstance(numbers, list):
            return numbers, sign
        own = next((n for n in names if all(isinstance(a, dict) and n in a for a in ranked)), None)
        if own is not None:
            return [answer[own] for answer in ranked], sign
    return None, 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _number(value: Any) -> Any:
    """A number that is written as text, as one; any other value as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _said(answer: Any) -> Any:
    """The text of an answer that has its score beside it."""
    if not isinstance(answer, dict) or looks_like_message(answer):
        return answer
    return next((answer[name] for name in (*fields.ANSWERS, *fields.CONTENTS) if name in answer), answer)


_TWO = re.compile(r"(.+)_([01ab12])")
_WINNERS = ("better_response_id", "winner", "preferred", "preference", "choice", "best", "chosen_index")
_VERDICT = re.compile(r"(?:(?:response|answer|model|assistant|output)[_ ]?)?([01ab12])")


def _judged(row: Fields) -> tuple[Any, Any] | None:
    """Two answers in fields that are numbered alike (response_0, response_1), and which of them is better."""
    verdict = row.find(_WINNERS)
    pairs: dict[str, dict[str, str]] = {}
    for name in row:
        if match := _TWO.fullmatch(name):
            pairs.setdefault(match[1], {})[match[2]] = name
    answers = (*fields.ANSWERS, *fields.LISTS)
    sides = next((found for stem, found in pairs.items() if len(found) == 2 and stem in answers), None)
    if verdict is None or sides is None:
        return None
    label = _VERDICT.fullmatch(plain_text(row.get(verdict)).lower())
    if label is None or label[1] not in sides or (verdict in ("choice", "best") and "0" not in sides):
        raise ValueError("two answers with a verdict that names neither")
    (loser,) = (side for side in sides if side != label[1])
    return row.get(sides[label[1]]), row.get(sides[loser])


def _split(answer: Any, notes: Notes, reasoning: bool, prefix: str, transcript: bool) -> tuple[list[Message], str]:
    """(messages before the answer, the answer); there are none before a string or a single message."""
    answer = structured_messages(answer)
    if looks_like_message(answer):
        return [], list_messages([answer], notes, prefix, reasoning)[-1]["content"]
    if transcript:
        messages = _before(map_roles(turns_of(answer) or []))
    elif isinstance(answer, list):
        messages = _before(list_messages(answer, notes, prefix, reasoning))
    else:
        return [], plain_text(answer)
    if messages and messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1]["content"]
    raise ValueError("an answer that does not end with the assistant's words")
