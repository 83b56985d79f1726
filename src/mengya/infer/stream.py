"""Tokens in, text out: whole characters as soon as they are certain, without the texts that end an answer."""

import codecs
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from mengya.infer.request import LogProb, Piece
from mengya.infer.sampling import Scored
from mengya.text.tokenizer import Tokenizer

_UNKNOWN = "\ufffd"

_LONGEST = 16
"""Tokens that a text may wait for. A character has four bytes at most, so it is broken then, and does not get whole."""


class TextStream:
    """Tokens in, text out: whole characters as soon as they are complete. Joined, they equal `decode` of all tokens
    (but SentencePiece turns the bytes around one that is not UTF-8 into U+FFFD, also those that are out already).

    The time for a token does not depend on how many were there before."""

    def __init__(self, tokenizer: Tokenizer):
        self._stream: _Bytes | _Decoded = _Bytes(tokenizer) if tokenizer.is_byte_level else _Decoded(tokenizer)

    def push(self, token: int) -> str:
        return self._stream.push(token)

    def flush(self) -> str:
        """What is left at the end, an unfinished character as U+FFFD."""
        return self._stream.flush()


class _Bytes:
    """Of a tokenizer whose texts are the bytes of their tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self._bytes = tokenizer.token_bytes
        self._control = frozenset(tokenizer.control_ids.values())
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return "" if token in self._control else self._decoder.decode(self._bytes[token])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Decodes(Protocol):
    def decode(self, ids: Sequence[int]) -> str: ...


class _Decoded:
    """Of a tokenizer of any kind. A token may end inside a character; decoding then ends in U+FFFD, which is held back.
    What a token adds is told from the tokens before it, because a tokenizer may write a word otherwise at the beginning
    of a text: SentencePiece drops the space before the first one."""

    def __init__(self, tokenizer: _Decodes):
        self._tokenizer = tokenizer
        self._known: list[int] = []  # the last tokens whose text is out; they stand before the others
        self._pending: list[int] = []
        self._emitted = 0  # characters of the pending tokens that are out already

    def _text(self) -> str:
        """Of the pending tokens."""
        before = self._tokenizer.decode(self._known)
        return self._tokenizer.decode([*self._known, *self._pending])[len(before) :]

    def push(self, token: int) -> str:
        self._pending.append(token)
        text = self._text()
        if (text and not text.endswith(_UNKNOWN)) or len(self._pending) == _LONGEST:
            return self.flush()
        piece, whole = text[self._emitted :].rstrip(_UNKNOWN), len(text.rstrip(_UNKNOWN))
        self._emitted = max(self._emitted, whole)
        return piece

    def flush(self) -> str:
        text = self._text()
        piece = text[self._emitted :]
        if text:  # tokens without a text say nothing about what follows them
            self._known = self._pending
        self._pending, self._emitted = [], 0
        return piece


class _Stops:
    """Looks for texts in one that comes in pieces (Knuth, Morris and Pratt 1977): as many steps as characters."""

    def __init__(self, stops: Sequence[str]):
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._matched = [0] * len(stops)  # characters of each that end what was read: a proper beginning of it
        self._read = 0
        self.found: int | None = None
        """Where the leftmost of those that are complete begins."""

    def read(self, text: str) -> None:
        """Stops at the character that settles what is the leftmost match."""
        if not self._stops:
            self._read += len(text)
            return
        for character in text:
            self._read += 1
            for number, (stop, borders) in enumerate(self._stops):
                length = self._matched[number]
                while length and stop[length] != character:
                    length = borders[length]
                length += stop[length] == character
                if length == len(stop):
                    begin = self._read - length
                    self.found = begin if self.found is None else min(begin, self.found)
                    length = borders[length]
                self._matched[number] = length
            if self.settled():
                return

    def certain(self) -> int:
        """Characters at the beginning of what was read that belong to no match, whatever follows."""
        begin = self._read - max(self._matched, default=0)
        return begin if self.found is None else min(begin, self.found)

    def settled(self) -> bool:
        """Whether there is a match, and none that began earlier can still become one."""
        return self.found is not None and self._read - max(self._matched, default=0) >= self.found


def _borders(text: str) -> list[int]:
    """For each length of a beginning of `text`, the longest shorter one that also ends it."""
    borders = [0, 0]
    for character in text[1:]:
        length = borders[-1]
        while length and text[length] != character:
            length = borders[length]
        borders.append(length + (text[length] == character))
    return borders


def named(tokenizer: Tokenizer, token: int, scored: Scored) -> LogProb:
    """A log-probability with the bytes of the tokens."""
    spelled = tokenizer.token_bytes
    top = tuple(LogProb(other, spelled[other], logprob) for other, logprob in scored.top)
    return LogProb(token, spelled[token], scored.logprob, top)


def joined(first: Piece, second: Piece) -> Piece:
    """`first`, and the text and tokens of the piece after it."""
    return first._replace(
        text=first.text + second.text, tokens=first.tokens + second.tokens, logprobs=first.logprobs + second.logprobs
    )


class Answer:
    """One choice as it grows: its tokens in, its pieces out. Joined, their texts are the answer up to the leftmost of
    the texts in `stop`, wherever tokens are cut.

    Held back is what may be the beginning of one of them, and unfinished characters; the tokens come with the last of
    their text. Those whose text begins with the match or behind it are left out."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), choice: int = 0):
        self.stopped = False
        """Whether a stop text has ended the answer."""
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer)
        self._stops = _Stops(stop)
        self._choice = choice
        self._held = ""
        self._out = self._decoded = 0  # characters
        self._unfinished: list[tuple[int, LogProb | None]] = []  # tokens since the last whole character
        self._waiting: deque[tuple[int, int, int, LogProb | None]] = deque()  # where their text begins and ends, tokens

    def push(self, token: int, scored: Scored | None = None) -> Piece:
        """What is certain now; its text may be empty. Nothing follows a stop text."""
        if self.stopped:
            return Piece(self._choice, "")
        self._unfinished.append((token, named(self._tokenizer, token, scored) if scored else None))
        return self._take(self._text.push(token), end=False)

    def flush(self) -> Piece:
        """What was held back, at the end of the answer, whatever ended it."""
        return Piece(self._choice, "") if self.stopped else self._take(self._text.flush(), end=True)

    def _take(self, text: str, end: bool) -> Piece:
        self._held += text
        if text or end:
            begin, self._decoded = self._decoded, self._decoded + len(text)
            self._waiting.extend((begin, self._decoded, *token) for token in self._unfinished)
            self._unfinished = []
        self._stops.read(text)
        self.stopped = self._stops.settled() or (end and self._stops.found is not None)
        ready = self._decoded if end and not self.stopped else self._stops.certain()
        if self.stopped:
            ready = self._stops.found or 0
        piece, self._held = self._held[: ready - self._out], self._held[ready - self._out :]
        self._out = ready
        tokens = []
        while self._waiting and (self._waiting[0][1] <= ready or (self.stopped and self._waiting[0][0] < ready)):
            tokens.append(self._waiting.popleft()[2:])
        logprobs = tuple(logprob for _, logprob in tokens if logprob)
        return Piece(self._choice, piece, tuple(token for token, _ in tokens), logprobs)
