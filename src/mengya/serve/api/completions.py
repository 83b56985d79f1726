"""/v1/completions: texts or token ids continued."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mengya.infer.request import LogProb, Piece
from mengya.serve.api.bodies import CompletionBody
from mengya.serve.api.errors import ApiError
from mengya.serve.api.logprobs import CompletionLogprobs
from mengya.serve.api.service import FINISH, Bill, Service, new_id
from mengya.serve.api.stream import DONE, PING, Stream, event, plain, unless_gone, with_errors
from mengya.serve.api.work import Work

_LENGTH = 16
"""Tokens of an answer unless the request says otherwise: OpenAI's default."""


async def complete(service: Service, request: Request, body: CompletionBody) -> Response:
    service.check_unknown(body)
    name, backend = service.model(body.model)
    _refuse(body)
    prompts = _prompts(body)
    length = _LENGTH if body.max_tokens is None else body.max_tokens
    empty = bool(body.echo) and length == 0
    # Token ids have no text here but that of their log-probabilities.
    about_prompt = bool(body.echo) and (body.logprobs is not None or not isinstance(prompts[0], str))
    logprobs = 0 if about_prompt and body.logprobs is None else body.logprobs
    makers = [
        service.request(body, backend, prompt, 1 if empty else length, logprobs, about_prompt) for prompt in prompts
    ]
    work = await unless_gone(request, service.begin(name, backend, makers, body.choices, "prompt"))
    answer = Completion(name, body, prompts, empty, about_prompt)
    if body.stream:
        return Stream(with_errors(_frames(work, answer, body)), work.cancel, service.settings.limits.ping_seconds)
    return await plain(request, work.cancel, _whole(work, answer))


def _refuse(body: CompletionBody) -> None:
    if body.suffix:
        raise ApiError(400, "suffix is not supported: these models do not fill in; leave it out", param="suffix")
    if body.best_of not in (None, body.choices):
        raise ApiError(400, "best_of is not supported; use n", param="best_of")
    if (body.model_extra or {}).get("response_format") not in (None, {"type": "text"}):
        raise ApiError(400, "response_format is not supported here; use /v1/chat/completions", param="response_format")


def _prompts(body: CompletionBody) -> list[str] | list[list[int]]:
    """One prompt is a list of one; a list of integers is one prompt."""
    given: Any = body.prompt
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


class Completion:
    """Choices, k for each prompt: that of number c of prompt p has the index p * k + c."""

    def __init__(self, model: str, body: CompletionBody, prompts: Sequence[Any], empty: bool, about_prompt: bool):
        """`empty`: only the prompts are asked for; `about_prompt`: their text comes with the first piece."""
        self._head = {"id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": model}
        self._each, self._echo, self._empty = body.choices, bool(body.echo), empty
        self._prompts, self._about_prompt, self._logprobs = prompts, about_prompt, body.logprobs is not None
        self.count, self.bill = len(prompts) * body.choices, Bill()
        self._begun: set[int] = set()
        self._spelt: dict[int, tuple[LogProb, ...]] = {}  # the tokens of each prompt
        self._early: dict[int, list[Piece]] = {}  # pieces that came before them
        self._lists: dict[int, CompletionLogprobs] = {}

    def reply(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._head, "choices": choices, **more}

    def grow(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        """What a piece of a prompt's answers adds."""
        if self._about_prompt and number not in self._spelt:
            if piece.choice != 0:
                self._early.setdefault(number, []).append(piece)
                return []
            self._spelt[number] = piece.prompt_logprobs
            return [self._grown(number, p) for p in (piece, *self._early.pop(number, []))]
        return [self._grown(number, piece)]

    def _grown(self, number: int, piece: Piece) -> dict[str, Any]:
        index = number * self._each + piece.choice
        text, tokens, usage = ("", (), piece.usage) if self._empty else (piece.text, piece.logprobs, piece.usage)
        if index not in self._begun:
            self._begun.add(index)
            if self._echo:
                spelt = self._spelt.get(number, ())
                prompt = self._prompts[number]
                before = b"".join(t.bytes for t in spelt).decode("utf-8", "replace")
                text, tokens = (prompt if isinstance(prompt, str) else before) + text, spelt + tokens
        if usage is not None and self._empty:
            usage = usage._replace(completion_tokens=0)
        self.bill.add(number, usage)
        logprobs = None
        if self._logprobs:
            logprobs = self._lists.setdefault(index, CompletionLogprobs()).add(tokens)
        finish = None if piece.finish is None else "length" if self._empty else FINISH.get(piece.finish, "stop")
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


async def _frames(work: Work, answer: Completion, body: CompletionBody) -> AsyncIterator[bytes]:
    yield PING
    async for number, piece in work.pieces():
        for choice in answer.grow(number, piece):
            yield event(answer.reply([choice]))
    if body.counts:
        yield event(answer.reply([], usage=answer.bill.as_json()))
    yield DONE


async def _whole(work: Work, answer: Completion) -> dict[str, Any]:
    texts: list[list[str]] = [[] for _ in range(answer.count)]
    choices: list[dict[str, Any]] = [{} for _ in range(answer.count)]
    async for number, piece in work.pieces():
        for grown in answer.grow(number, piece):
            index = grown["index"]
            texts[index].append(grown["text"])
            lists = choices[index].get("logprobs") if choices[index] else None
            if lists and grown["logprobs"]:
                grown["logprobs"] = {name: lists[name] + more for name, more in grown["logprobs"].items()}
            choices[index] = grown
    for choice, parts in zip(choices, texts, strict=True):
        choice["text"] = "".join(parts)
    return answer.reply(choices, usage=answer.bill.as_json())
