"""Answers to many requests at once, when nobody waits for their pieces."""

from collections.abc import Sequence
from typing import NamedTuple

from mengya.errors import UserError
from mengya.infer.engine import Engine
from mengya.infer.request import Conversation, Finish, LogProb, Piece, Request


class Generated(NamedTuple):
    """One choice, whole; see `Piece`."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[LogProb, ...]
    finish: Finish
    prompt_logprobs: tuple[LogProb, ...] = ()


def generate(engine: Engine, requests: Sequence[Request]) -> list[list[Generated]]:
    """The choices of each request, in order; prompts are token ids. UserError as `Engine.add`, and if a model fails.

    Nobody else may use the engine meanwhile."""
    pieces: list[list[Piece]] = [[] for _ in requests]
    for request, found in zip(requests, pieces, strict=True):
        assert not isinstance(request.prompt, str | Conversation)
        engine.add(request, request.prompt, found.append)
    while engine.busy:
        engine.step()
    return [[_joined(found, choice) for choice in range(r.n)] for r, found in zip(requests, pieces, strict=True)]


def _joined(pieces: Sequence[Piece], choice: int) -> Generated:
    own = [piece for piece in pieces if piece.choice == choice]
    finish = own[-1].finish
    if finish is None or finish == "error":
        raise UserError(own[-1].error or "the model failed")
    return Generated(
        "".join(piece.text for piece in own),
        tuple(token for piece in own for token in piece.tokens),
        tuple(each for piece in own for each in piece.logprobs),
        finish,
        tuple(each for piece in own for each in piece.prompt_logprobs),
    )
