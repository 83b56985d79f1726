"""/v1/chat/completions. The plain answer is the stream, put together: so the two cannot differ."""

import secrets
import string
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mengya.infer.request import Conversation, Piece
from mengya.serve.api.bodies import ChatBody, NamedTool, Tool
from mengya.serve.api.calls import Called, CallFinder
from mengya.serve.api.errors import ApiError
from mengya.serve.api.knowledge import answer_from_documents
from mengya.serve.api.logprobs import as_chat
from mengya.serve.api.messages import as_conversation
from mengya.serve.api.service import FINISH, Bill, Service, new_id
from mengya.serve.api.stream import DONE, Stream, event, plain, unless_gone, with_errors
from mengya.serve.api.wanted import must_call, schema_of, tools_of
from mengya.serve.api.work import Work

_ALPHANUMERIC = string.ascii_letters + string.digits


async def chat(service: Service, request: Request, body: ChatBody) -> Response:
    service.check_unknown(body)
    if body.knowledge_base is not None:
        return await answer_from_documents(service, request, body)
    name, backend = service.model(body.model)
    _refuse(body)
    tools = tools_of(body)
    conversation = Conversation(as_conversation(body.messages), _plain(tools))
    make = service.request(body, backend, conversation, _length(body), _logprobs(body), schema=schema_of(body, tools))
    work = await unless_gone(request, service.begin(name, backend, [make], body.choices, "messages"))
    answer = Answer(name, body, tools)
    if body.stream:
        return Stream(with_errors(_frames(work, answer, body)), work.cancel, service.settings.limits.ping_seconds)
    return await plain(request, work.cancel, _whole(work, answer))


def _refuse(body: ChatBody) -> None:
    """ApiError for what would have an effect elsewhere, and has none here."""
    extra = body.model_extra or {}
    for field, instead in (("functions", "tools"), ("function_call", "tool_choice"), ("audio", "text")):
        if extra.get(field) is not None:
            raise ApiError(400, f"{field} is not supported; use {instead}", param=field)
    if extra.get("continue_final_message"):
        instead = "continue the text of the conversation by /v1/completions"
        raise ApiError(400, f"continue_final_message is not supported; {instead}", param="continue_final_message")
    if extra.get("modalities") not in (None, ["text"]):
        raise ApiError(400, "modalities other than text are not supported", param="modalities")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")


def _plain(tools: list[Tool]) -> list[dict[str, Any]] | None:
    return [tool.model_dump(exclude_unset=True, exclude_none=True) for tool in tools] or None


def _length(body: ChatBody) -> int | None:
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def _logprobs(body: ChatBody) -> int | None:
    return (body.top_logprobs or 0) if body.logprobs else None


class Answer:
    """The choices of one answer, as they grow: deltas of the protocol from the pieces of a backend."""

    def __init__(self, model: str, body: ChatBody, tools: list[Tool]):
        self._head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": model}
        self.choices, self.bill = body.choices, Bill()
        self._named = isinstance(body.tool_choice, NamedTool)
        names = {tool.function.name for tool in tools}
        most = 1 if body.parallel_tool_calls is False else None
        finders = (CallFinder(names, must_call(body), most) for _ in range(self.choices if tools else 0))
        self._finders = dict(enumerate(finders))

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}

    def completion(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self.bill.as_json()}

    def grow(self, piece: Piece) -> list[dict[str, Any]]:
        """What a piece adds to its choice: choices of a chunk, each for a chunk of its own."""
        finder = self._finders.get(piece.choice)
        found: list[str | Called] = finder.feed(piece.text) if finder else [piece.text] if piece.text else []
        if finder and piece.finish is not None:
            found += finder.end()
        calls = (finder.count if finder else 0) - sum(isinstance(item, Called) for item in found)
        deltas: list[dict[str, Any]] = []
        for item in found:
            deltas.append({"content": item} if isinstance(item, str) else {"tool_calls": [_call(item, calls)]})
            calls += isinstance(item, Called)
        if not deltas and piece.logprobs:
            deltas.append({})
        grown = [_choice(piece.choice, delta) for delta in deltas]
        if piece.logprobs:
            grown[0]["logprobs"] = {"content": as_chat(piece.logprobs), "refusal": None}
        if piece.finish is not None:
            self.bill.add(0, piece.usage)
            finish = FINISH.get(piece.finish, "stop")
            if finish == "stop" and calls and not self._named:  # OpenAI's server says "stop" after a call by name
                finish = "tool_calls"
            grown.append(_choice(piece.choice, {}, finish))
        return grown


def _choice(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _call(called: Called, index: int) -> dict[str, Any]:
    function = {"name": called.name, "arguments": called.arguments}
    return {"index": index, "id": _call_id(), "type": "function", "function": function}


def _call_id() -> str:
    """Nine letters and digits: what Mistral's template takes when the call comes back, and no other objects to."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


async def _frames(work: Work, answer: Answer, body: ChatBody) -> AsyncIterator[bytes]:
    for index in range(answer.choices):
        yield event(answer.chunk([_choice(index, {"role": "assistant", "content": ""})]))
    async for _, piece in work.pieces():
        for choice in answer.grow(piece):
            yield event(answer.chunk([choice]))
    if body.counts:
        yield event(answer.chunk([], usage=answer.bill.as_json()))
    yield DONE


async def _whole(work: Work, answer: Answer) -> dict[str, Any]:
    choices = [_Folded(index) for index in range(answer.choices)]
    async for _, piece in work.pieces():
        for choice in answer.grow(piece):
            choices[piece.choice].add(choice)
    return answer.completion([choice.as_json() for choice in choices])


class _Folded:
    """A choice put together from the deltas of a stream."""

    def __init__(self, index: int):
        self._index = index
        self._texts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] | None = None
        self._finish: str | None = None

    def add(self, choice: dict[str, Any]) -> None:
        delta = choice["delta"]
        self._texts.append(delta.get("content", ""))
        self._calls += [{k: v for k, v in call.items() if k != "index"} for call in delta.get("tool_calls", ())]
        if choice["logprobs"]:
            self._logprobs = (self._logprobs or []) + choice["logprobs"]["content"]
        self._finish = choice["finish_reason"] or self._finish

    def as_json(self) -> dict[str, Any]:
        text = "".join(self._texts)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._calls:
            message |= {"content": text or None, "tool_calls": self._calls}
        logprobs = None if self._logprobs is None else {"content": self._logprobs, "refusal": None}
        return {"index": self._index, "message": message, "logprobs": logprobs, "finish_reason": self._finish}
