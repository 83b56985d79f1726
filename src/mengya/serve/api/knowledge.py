"""/v1/chat/completions with `knowledge_base`: an answer from documents, with its citations.

It is sent when it is complete: what the documents do not say is replaced before anybody reads it."""

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mengya.infer.backends import Backend
from mengya.infer.request import Conversation
from mengya.infer.request import Request as Asked
from mengya.rag.answer import Answer, Prepared, conclude, prepare
from mengya.rag.store import KnowledgeBase, UnknownBase
from mengya.serve.api.bodies import ChatBody
from mengya.serve.api.errors import ApiError
from mengya.serve.api.messages import as_conversation
from mengya.serve.api.service import FINISH, Bill, Service, new_id
from mengya.serve.api.stream import DONE, Stream, event, plain, unless_gone, with_errors
from mengya.serve.api.work import Work

_PARAM = "knowledge_base"


async def answer_from_documents(service: Service, request: Request, body: ChatBody) -> Response:
    name, backend = service.model(body.model)
    _refuse(body)
    length = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    conversation = as_conversation(body.messages)
    if conversation[-1]["role"] != "user":
        raise ApiError(400, "with a knowledge_base, the last message is the user's question", param="messages")
    asked = service.request(body, backend, Conversation(conversation), length)().sampling
    search = partial(_search, service, backend, body.knowledge_base or "", conversation, asked)
    service.shop.room.take(1)
    try:
        prepared = await unless_gone(request, service.shop.call(search, _PARAM, alone=False))
    finally:
        service.shop.room.give(1)
    if prepared.answer is None:

        def make() -> Asked:
            return Asked(prompt=Conversation(prepared.messages), sampling=asked, stop=body.stops)

        work: Work | None = await unless_gone(request, service.begin(name, backend, [make], 1, "messages"))
    else:
        work = None
    written = _Written(name, prepared, work)
    cancel = work.cancel if work else lambda: None
    if body.stream:
        return Stream(with_errors(written.frames(body.counts)), cancel, service.settings.limits.ping_seconds)
    return await plain(request, cancel, written.whole())


def _refuse(body: ChatBody) -> None:
    """What has no meaning for one answer that is compared with documents."""
    given = {
        "n": body.choices != 1,
        "tools": body.tools,
        "response_format": body.response_format,
        "logprobs": body.logprobs,
    }
    for field, value in given.items():
        if value:
            raise ApiError(400, f"{field} does not go with knowledge_base; leave it out", param=field)


def _search(
    service: Service, backend: Backend, name: str, conversation: list[dict[str, Any]], sampling: Any
) -> Prepared:
    """In a thread."""
    *history, last = conversation
    bases, retriever = [_base(service, name)], service.settings.retriever
    return prepare(backend, bases, last["content"], history, retriever=retriever, sampling=sampling)


def _base(service: Service, name: str) -> KnowledgeBase:
    folder = service.settings.knowledge
    if folder is None:
        raise ApiError(404, "this server has no knowledge bases; start it with --knowledge FOLDER", param=_PARAM)
    try:
        return folder.open(name)
    except UnknownBase:
        told = f"The knowledge base {name[:100]!r} is not there."
        raise ApiError(404, told, param=_PARAM, code="knowledge_base_not_found") from None


class _Written:
    """The answer as the protocol has it."""

    def __init__(self, model: str, prepared: Prepared, work: Work | None):
        self._head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": model}
        self._prepared, self._work, self._bill = prepared, work, Bill()
        self._finish = "stop"

    async def _answer(self) -> Answer:
        texts: list[str] = []
        if self._work is not None:
            async for _, piece in self._work.pieces():
                texts.append(piece.text)
                if piece.finish is not None:
                    self._bill.add(0, piece.usage)
                    self._finish = FINISH.get(piece.finish, "stop")
        return conclude(self._prepared, "".join(texts))

    async def whole(self) -> dict[str, Any]:
        message = {"role": "assistant", "refusal": None} | _said(await self._answer())
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._bill.as_json()}

    async def frames(self, counts: bool) -> AsyncIterator[bytes]:
        yield self._chunk({"role": "assistant", "content": ""})
        yield self._chunk(_said(await self._answer()))
        yield self._chunk({}, self._finish)
        if counts:
            told = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._bill.as_json()}
            yield event(told)
        yield DONE

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [choice]})


def _said(answer: Answer) -> dict[str, Any]:
    citations = [citation.as_json() for citation in answer.citations]
    return {"content": answer.text, "citations": citations, "grounding": answer.kind, "query": answer.query}
