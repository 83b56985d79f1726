"""Conversations that are longer than a row: cut at turns, and each answer keeps the end of its prompt."""

from itertools import takewhile
from typing import NamedTuple

from mengya.data.conversations import is_supervised
from mengya.text.chat import Chat, Message, Rewritten


class Rendered(NamedTuple):
    ids: list[int]
    mask: list[int]
    """1 where a token is supervised: in what the assistant says, and at the end of its turns."""


def exchanges(messages: list[Message]) -> tuple[list[Message], list[list[Message]]]:
    """(what stands before the first question, the exchanges); each of these begins with a question."""
    system = list(takewhile(lambda message: message["role"] == "system", messages))
    groups: list[list[Message]] = []
    for message in messages[len(system) :]:
        if not groups or (message["role"] == "user" and groups[-1][-1]["role"] != "user"):
            groups.append([])
        groups[-1].append(message)
    return system, groups


def fit_conversation(chat: Chat, messages: list[Message], seq_len: int) -> tuple[list[Rendered], bool]:
    """A conversation as documents of at most `seq_len` + 1 tokens (the last one is only predicted), and whether it had
    to be cut: if it fits, it is one document.

    Else neighbouring exchanges stay together as far as they fit, each time after the system message. An exchange that
    is too long by itself loses the oldest tokens of its prompt. An answer that is longer than a row goes on in the
    next one, which begins with the end of what stands before. Every supervised token is supervised once.

    Some templates write earlier turns otherwise once a conversation goes on: Qwen3's leaves out their thoughts,
    Mistral's moves the system prompt. Then each answer is a document of its own, behind the prompt that it answers.
    """
    try:
        whole = Rendered(*chat.encode(messages))
    except Rewritten:
        if len(alone := answers_alone(messages)) == 1 and alone[0] == messages:
            raise
        fitted = [fit_conversation(chat, talk, seq_len) for talk in alone]
        return [piece for pieces, _ in fitted for piece in pieces], any(cut for _, cut in fitted)
    if len(whole.ids) <= seq_len + 1:
        return [whole], False
    system, groups = exchanges(messages)
    sizes = [len(chat.encode(group)[0]) for group in groups]
    room = seq_len + 1 - (len(chat.encode(system + groups[0])[0]) - sizes[0] if system else 0)
    parts: list[list[Message]] = []
    free = -1
    for group, size in zip(groups, sizes, strict=True):
        if size > free:
            parts.append([])
            free = room
        parts[-1] += group
        free -= size
    learnt = (part for part in parts if any(map(is_supervised, part)))
    return [piece for part in learnt for piece in windows(Rendered(*chat.encode(system + part)), seq_len)], True


def answers_alone(messages: list[Message]) -> list[list[Message]]:
    """For each supervised answer the conversation up to it, in which it alone is supervised."""
    context = [message | {"supervised": False} if message["role"] == "assistant" else message for message in messages]
    places = [place for place, message in enumerate(messages) if is_supervised(message)]
    return [[*context[:place], messages[place]] for place in places]


def last_answer(chat: Chat, messages: list[Message]) -> Rendered:
    """A conversation behind whose last prompt all supervised tokens belong to the last answer."""
    try:
        return Rendered(*chat.encode(messages))
    except Rewritten:
        return Rendered(*chat.encode(answers_alone(messages)[-1]))


def windows(rendered: Rendered, seq_len: int) -> list[Rendered]:
    """Pieces of at most `seq_len` + 1 tokens in which every supervised token is supervised once. Where there is room, a
    piece begins as early as it can; a quarter of a row stands before its first supervised token, if there is as much.
    """
    if len(rendered.ids) <= seq_len + 1:
        return [rendered]
    ids, mask = rendered
    supervised = [place for place, value in enumerate(mask) if value]
    pieces: list[Rendered] = []
    done = 0
    while done < len(supervised):
        first = supervised[done]
        limit = first - min(first, max(1, seq_len // 4)) + seq_len + 1
        begun, done = done, sum(place < limit for place in supervised)
        end = supervised[done - 1] + 1
        begin = max(0, end - seq_len - 1)
        unseen = supervised[begun]
        pieces.append(Rendered(ids[begin:end], [0] * (unseen - begin) + mask[unseen:end]))
    return pieces
