"""What came of a request."""

from collections.abc import Sequence
from queue import SimpleQueue
from typing import NamedTuple

from mengya.infer.backends import Backend
from mengya.infer.request import Conversation, LogProb, Piece, Request

HELLO = Conversation([{"role": "user", "content": "你好"}])
PATIENCE = 60
"""Seconds: processes may be paused on a busy machine."""


class Said(NamedTuple):
    text: str
    last: Piece
    logprobs: list[LogProb]
    tokens: list[int]


def finished(pieces: "SimpleQueue[Piece]", n: int = 1) -> list[Said]:
    """The choices of a request, in order; each has ended once, and nothing came behind its end."""
    found: list[Piece] = []
    while sum(piece.finish is not None for piece in found) < n:
        found.append(pieces.get(timeout=PATIENCE))
    return [_joined([piece for piece in found if piece.choice == choice]) for choice in range(n)]


def _joined(pieces: Sequence[Piece]) -> Said:
    assert [piece.finish is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].usage is not None
    logprobs = [each for piece in pieces for each in piece.logprobs]
    return Said("".join(p.text for p in pieces), pieces[-1], logprobs, [t for p in pieces for t in p.tokens])


def answers(backend: Backend, request: Request) -> list[Said]:
    pieces: SimpleQueue[Piece] = SimpleQueue()
    backend.submit(request, pieces.put)
    return finished(pieces, request.n)


def answer(backend: Backend, **request: object) -> Said:
    return answers(backend, Request(**({"prompt": HELLO} | request)))[0]  # type: ignore[arg-type]
