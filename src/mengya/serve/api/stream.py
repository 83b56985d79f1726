"""Answers that leave piece by piece, and clients that leave before them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mengya.serve.api.errors import ApiError, json_response, to_json
from mengya.serve.api.gate import Gone

T = TypeVar("T")
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Nothing between is to collect the pieces."""
DONE = b"data: [DONE]\n\n"
PING = b": still here\n\n"


def event(value: Any) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


async def _left(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first_of(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """What `work` returns; Gone, and it is cancelled, if the client leaves first."""
    task, watch = asyncio.create_task(work), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for either in (task, watch):
            either.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. Gone if the client leaves before."""
    return await _first_of(work, request.receive)


class Stream(Response):
    """Frames as they come. Headers leave at once, before the first; a silence is filled with `ping`s. At the end,
    whatever it is, `end` is called."""

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        end: Callable[[], None],
        ping_seconds: float,
        media_type: str = "text/event-stream",
        ping: bytes | None = PING,
    ):
        super().__init__(None, 200, HEADERS, media_type)
        del self.headers["content-length"]
        self._frames, self._end, self._ping_seconds, self._ping = frames, end, ping_seconds, ping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(Gone):
                await _first_of(self._write(send), receive)
        finally:
            self._end()

    async def _write(self, send: Send) -> None:
        async def put(body: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await put(b"")
        waiting = asyncio.ensure_future(anext(self._frames))
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=self._ping_seconds)
                if not done:
                    if self._ping:
                        await put(self._ping)
                    continue
                try:
                    frame = waiting.result()
                except StopAsyncIteration:
                    break
                waiting = asyncio.ensure_future(anext(self._frames))
                await put(frame)
            await put(b"", more=False)
        finally:
            waiting.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await waiting


async def plain(request: Request, end: Callable[[], None], content: Coroutine[Any, Any, Any]) -> Response:
    """The whole answer, `content`, as JSON. Gone if the client leaves first. Whatever happens, `end` is called."""
    try:
        return json_response(await unless_gone(request, content))
    finally:
        end()


async def with_errors(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The frames; if one cannot be made, the error in OpenAI's shape, and the end."""
    try:
        async for frame in frames:
            yield frame
    except ApiError as error:
        yield event(error.body)
