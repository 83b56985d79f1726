"""Answers of a model that is too small to find its way through passages: it is asked about one sentence after another.

The words of the question choose the sentences; the model says what of a sentence is the answer, or that it holds none.
It learns this from the conversations that `corpus.reading` adds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue

from mengya.infer.backends import Backend
from mengya.infer.backends.listening import awaited
from mengya.infer.request import Conversation, Piece, Request, Sampling, TooLong
from mengya.rag.names import is_named
from mengya.rag.passages import sentences
from mengya.rag.quote import found_in, words_of
from mengya.text.grounding import CHINESE, sentence_message, wording

_SHARE = 0.5
"""Of the characters that the best sentence shares with the question; those with fewer are not asked about."""
_MOST = 24
"""Sentences that are asked about."""
_ANSWER = Sampling(temperature=0, max_new_tokens=32)
_CLAUSE = re.compile(r"[，,；;：:]")
_PRONOUN = re.compile("[他她它这那该本其]")


@dataclass(frozen=True)
class Read:
    """What a sentence answers."""

    text: str
    """Words of the sentence; empty: the passages do not hold the answer."""
    passage: int = 0
    begin: int = 0
    """Of the sentence in the passage, as is `end`."""
    end: int = 0


@dataclass(frozen=True)
class _Part:
    """A sentence or a clause of one, which is `text`."""

    text: str
    sentence: Read
    shared: int
    """Characters of the question's words, with what was said before; `own` without that."""
    own: int
    named: bool
    """Whether it has something that the question names."""


def read(backend: Backend, question: str, passages: Sequence[str]) -> Read | None:
    """None if the model has not learnt to read, the question is not in Chinese, or no sentence has a word of it."""
    parts = _parts(question, passages) if wording(question) is CHINESE else []
    if not parts:
        return None
    for some in (parts[:1], parts[1:]):  # the first answer says whether it is of use to ask about the others
        said = _said(backend, [sentence_message(question, part.text) for part in some])
        for part, text in zip(some, said, strict=True):
            answer = text.rstrip("。")
            asked = answer in question and "还是" not in question
            if answer and answer in part.text and not asked:
                return replace(part.sentence, text=answer)
        if 2 * said.count(CHINESE.refusal) < len(said):
            return None
    return Read("")


def _parts(question: str, passages: Sequence[str]) -> list[_Part]:
    """Those that have what the question names, and share most with it, the best first; clauses before the sentence that
    they are in."""
    words = words_of(question)
    parts: list[_Part] = []
    for number, passage in enumerate(passages):
        if not is_named(question, [passage]):
            continue
        for begin, end in sentences(passage):
            sentence = Read("", number, begin, end)
            whole = passage[begin:end].rstrip("。！？!?；; ")
            clauses = [clause for clause in _CLAUSE.split(whole) if clause.strip()]
            before = passage[:begin] if _PRONOUN.match(whole) else ""
            for text in [*clauses, *([whole] if len(clauses) > 1 else [])]:
                # What a pronoun stands for, or a clause leaves out, was said before.
                told = before + whole[: whole.find(text) + len(text)]
                shared, own = (sum(map(len, found_in(words, each))) for each in (told, text))
                parts.append(_Part(f"{text.strip()}。", sentence, shared, own, is_named(question, [told])))
    named = [part for part in parts if part.named] or parts
    best = max((part.shared for part in named), default=0)
    near = [part for part in named if part.shared and part.shared >= _SHARE * best]
    return sorted(near, key=lambda part: (-part.shared, -part.own))[:_MOST]


def _said(backend: Backend, messages: Sequence[str]) -> list[str]:
    """What the model answers to each, asked at once; nothing to those that do not fit into its context, or that it
    fails at: whoever shows it passages then will see that, too."""
    pieces: SimpleQueue[tuple[int, Piece]] = SimpleQueue()
    texts, tickets = [""] * len(messages), []

    def deliver(number: int, piece: Piece) -> None:
        pieces.put((number, piece))

    try:
        for number, message in enumerate(messages):
            request = Request(prompt=Conversation([{"role": "user", "content": message}]), sampling=_ANSWER)
            try:
                tickets.append(backend.submit(request, partial(deliver, number)))
            except TooLong:
                continue
        open_requests = len(tickets)
        while open_requests:
            number, piece = awaited(pieces, backend)
            texts[number] += piece.text
            open_requests -= piece.finish is not None
    finally:
        for ticket in tickets:
            ticket.cancel()
    return [text.strip() for text in texts]
