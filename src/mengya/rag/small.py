"""Answers of a model that is too small to find its way through passages: it is asked about one sentence after another.

The words of the question choose the sentences; the model says what of a sentence is the answer, or that it holds none.
It learns this from the conversations that `corpus.reading` adds. Where it writes a name that it has never seen a
little wrong, the piece of the sentence is taken that it finds likeliest.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple

from mengya.errors import UserError
from mengya.infer.backends import Backend
from mengya.infer.backends.listening import awaited
from mengya.infer.request import Conversation, LogProb, Piece, Request, Sampling, TooLong
from mengya.rag import terms
from mengya.rag.names import Names
from mengya.rag.passages import sentences
from mengya.rag.quote import found_in, words_of
from mengya.text.grounding import CHINESE, sentence_message, wording

_SHARE = 0.5
"""Of the characters that the best sentence shares with the question; those with fewer are not asked about."""
_MOST = 24
"""Sentences that are asked about."""
_FIRST = 3
"""Answers that say whether it is of use to ask about the other sentences."""
_LONGEST = 7
"""Words of an answer that is chosen among the pieces of a sentence."""
_NEAR = 0.5
"""Part of what a model says that must stand in the sentence if it has learnt to read."""
_ANSWER = Sampling(temperature=0, max_new_tokens=32)
_SCORE = Sampling(temperature=0, max_new_tokens=1)
_CLAUSE = re.compile(r"[，,；;：:]")
_STOPS = frozenset("，。；：？！,;:?! \n")
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
    for some in (parts[:_FIRST], parts[_FIRST:]):
        said = _said(backend, [sentence_message(question, part.text) for part in some])
        for part, text in zip(some, said, strict=True):
            if text != CHINESE.refusal and (answer := _answer(backend, question, part.text, text.rstrip("。"))):
                return replace(part.sentence, text=answer)
        if 2 * said.count(CHINESE.refusal) < len(said):
            return None
    return Read("")


def _answer(backend: Backend, question: str, sentence: str, said: str) -> str:
    """The words of a sentence that the model means; "" if it means none. Words of the question are no answer, unless it
    offers them to choose from."""
    asked = "" if "还是" in question else question
    # Not a part of a number or of a word of Latin letters.
    if said and re.search(rf"(?<![0-9A-Za-z]){re.escape(said)}(?![0-9A-Za-z])", sentence):
        return "" if said in asked else said
    pieces = [piece for piece in _pieces(sentence) if piece not in asked]
    near = sum(character in sentence for character in said) >= _NEAR * len(said)
    return _likeliest(backend, sentence_message(question, sentence), pieces) if said and near and pieces else ""


def _pieces(sentence: str) -> list[str]:
    """Words that stand together, up to `_LONGEST`."""
    words = terms.words(sentence)
    found: dict[str, None] = {}
    for begin in range(len(words)):
        for end in range(begin + 1, min(begin + _LONGEST, len(words)) + 1):
            if words[end - 1] in _STOPS:
                break
            found["".join(words[begin:end]).strip()] = None
    return [piece for piece in found if piece]


def _likeliest(backend: Backend, message: str, pieces: Sequence[str]) -> str:
    """The answer whose tokens are likeliest on average; "" if this backend does not tell."""
    try:
        prompt = backend.encode(_conversation(message))
        answers = [backend.encode(f"{piece}。") for piece in pieces]
        answers = [ids[ids[:1] == prompt[:1] :] for ids in answers]  # without what every text begins with
        asked = [Request(prompt=[*prompt, *ids], sampling=_SCORE, prompt_logprobs=True, logprobs=0) for ids in answers]
        given = [said.scores[len(prompt) :] for said in _ask(backend, asked)]
    except UserError:
        return ""
    means = [sum(each.logprob or 0.0 for each in scores) / len(scores) if scores else -1e9 for scores in given]
    return pieces[max(range(len(pieces)), key=means.__getitem__)]


def _parts(question: str, passages: Sequence[str]) -> list[_Part]:
    """Those that have what the question names, and share most with it, the best first; clauses before the sentence that
    they are in."""
    words, names = words_of(question), Names(question)
    parts: list[_Part] = []
    for number, passage in enumerate(passages):
        if not names.are_in([passage]):
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
                parts.append(_Part(f"{text.strip()}。", sentence, shared, own, names.are_in([told])))
    named = [part for part in parts if part.named] or parts
    best = max((part.shared for part in named), default=0)
    near = [part for part in named if part.shared and part.shared >= _SHARE * best]
    return sorted(near, key=lambda part: (-part.shared, -part.own))[:_MOST]


class _Said(NamedTuple):
    text: str
    scores: Sequence[LogProb]
    """Of the prompt's tokens, if they were asked for."""


def _conversation(message: str) -> Conversation:
    return Conversation([{"role": "user", "content": message}])


def _said(backend: Backend, messages: Sequence[str]) -> list[str]:
    """What the model answers to each."""
    asked = [Request(prompt=_conversation(message), sampling=_ANSWER) for message in messages]
    return [said.text.strip() for said in _ask(backend, asked)]


def _ask(backend: Backend, requests: Sequence[Request]) -> list[_Said]:
    """All at once; nothing is said to those that do not fit into the context, or that the model fails at: whoever shows
    it passages then will see that, too."""
    pieces: SimpleQueue[tuple[int, Piece]] = SimpleQueue()
    found, tickets = [_Said("", ())] * len(requests), []

    def deliver(number: int, piece: Piece) -> None:
        pieces.put((number, piece))

    try:
        for number, request in enumerate(requests):
            try:
                tickets.append(backend.submit(request, partial(deliver, number)))
            except TooLong:
                continue
        open_requests = len(tickets)
        while open_requests:
            number, piece = awaited(pieces, backend)
            text, scores = found[number]
            found[number] = _Said(text + piece.text, scores or piece.prompt_logprobs)
            open_requests -= piece.finish is not None
    finally:
        for ticket in tickets:
            ticket.cancel()
    return found
