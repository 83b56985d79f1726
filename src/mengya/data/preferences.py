"""Preference pairs out of the shapes in which people publish them: a prompt, a chosen and a rejected answer."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from mengya.data import conversations
from mengya.data.cleaning import strip_controls
from mengya.data.conversations import as_text, first_field, lower_fields, merge_turns, prompt_messages, system_messages
from mengya.data.files import Paths
from mengya.data.quarantine import Quarantine
from mengya.data.readers import Row
from mengya.text.chat import Message

CHOSEN_FIELDS = ("chosen", "response_chosen", "chosen_response", "answer_chosen", "better", "win")
REJECTED_FIELDS = ("rejected", "response_rejected", "rejected_response", "answer_rejected", "worse", "lose")


class Preference(NamedTuple):
    prompt: list[Message]
    """The last message is a user's or a tool's."""
    chosen: str
    """The better answer."""
    rejected: str


def read_preferences(paths: Paths, quarantine: Quarantine) -> Iterator[Row[Preference]]:
    """The pair in every row of every file under `paths`; rows without one are quarantined."""
    return conversations.read_parsed(paths, quarantine, parse_preference)


def parse_preference(value: Any) -> Preference:
    """The pair in one row; ValueError(reason) if there is none.

    The answers are in `CHOSEN_FIELDS` and `REJECTED_FIELDS` (each a string, a message, or the messages of a whole
    conversation), or the first and the last in a list of answers, which is ranked best first. The prompt is written as
    in a conversation, or is what two whole conversations have in common.
    """
    if not isinstance(value, dict):
        raise ValueError("not an object, so not a preference pair")
    row = lower_fields(value)
    chosen, rejected = _answers(row)
    before_chosen, best = _split(chosen)
    before_rejected, worst = _split(rejected)
    if before_chosen != before_rejected:
        raise ValueError("chosen and rejected differ before their last answer")
    # Whole conversations repeat the prompt, and say more than a bare string of it.
    messages = system_messages(row) + before_chosen if before_chosen else prompt_messages(row)
    prompt = merge_turns(messages)
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        raise ValueError("a prompt that does not end with a question" if prompt else "an empty question")
    best, worst = strip_controls(best).strip(), strip_controls(worst).strip()
    if not best or not worst:
        raise ValueError("an empty answer")
    if best == worst:
        raise ValueError("chosen and rejected are the same")
    return Preference(prompt, best, worst)


def _answers(row: dict[str, Any]) -> tuple[Any, Any]:
    chosen, rejected = first_field(row, CHOSEN_FIELDS), first_field(row, REJECTED_FIELDS)
    if chosen is not None and rejected is not None:
        return chosen, rejected
    if chosen is not None or rejected is not None:
        raise ValueError("one answer of the pair is missing")
    ranked = first_field(row, (*conversations.ANSWER_FIELDS, "outputs", "responses", "answers"))
    if isinstance(ranked, list):
        if len(ranked) < 2:
            raise ValueError("a ranking of fewer than two answers")
        return ranked[0], ranked[-1]
    if any(isinstance(row.get(name), bool) for name in ("label", "kto_tag")):
        raise ValueError("one answer with a label (KTO data) is not a pair")
    raise ValueError("no chosen and rejected answer")


def _split(answer: Any) -> tuple[list[Message], str]:
    """(messages before the answer, the answer); there are none before a string or a single message."""
    if isinstance(answer, dict):
        answer = [answer]
    if not isinstance(answer, list):
        return [], as_text(answer)
    messages = [message for message in conversations.list_messages(answer) if message["content"]]
    if messages and messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1]["content"]
    raise ValueError("an answer that does not end with the assistant's words")
