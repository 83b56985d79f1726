"""From a backend's threads to the event loop: requests that were taken, and their pieces in one order."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from mengya.errors import UserError
from mengya.infer.backends import Backend, Ticket
from mengya.infer.request import Piece, Request
from mengya.serve.api.errors import ApiError, from_user_error, told
from mengya.serve.api.measures import Measures

T = TypeVar("T")
_THREADS = 4
"""That prepare requests: templates, tokens and grammars take time, which the event loop has not."""


class Room:
    """How many answers may be open at once."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0

    def take(self, count: int) -> None:
        """ApiError 400 if it is more than there is ever room for, 429 if it is for now."""
        if count > self.limit:
            raise ApiError(400, f"{count} answers are more than the {self.limit} that this server gives at once.")
        if self.used + count > self.limit:
            raise ApiError(
                429, "The server is busy; try again later.", code="server_overloaded", headers={"Retry-After": "1"}
            )
        self.used += count

    def give(self, count: int) -> None:
        self.used -= count


class Workshop:
    """Where the work of one server is done: its threads, its room."""

    def __init__(self, limit: int, seconds: float, measures: Measures, sources: Mapping[str, str]):
        self.room, self.seconds, self.measures, self.sources = Room(limit), seconds, measures, sources
        self._threads = ThreadPoolExecutor(_THREADS, "mengya-api")
        self._long = ThreadPoolExecutor(1, "mengya-embed")  # work that may take long is not to hold up the rest

    def submit(self, function: Callable[[], T]) -> "Future[T]":
        return self._threads.submit(function)

    async def call(self, function: Callable[[], T], param: str, *, alone: bool = True) -> T:
        """`function()`, in a thread; its UserError as ApiError, 504 if the time is over. `alone`: one after another."""
        try:
            async with asyncio.timeout(self.seconds):
                return await asyncio.wrap_future((self._long if alone else self._threads).submit(function))
        except TimeoutError:
            raise too_slow(self.seconds) from None
        except UserError as error:
            raise from_user_error(error, param, self.sources) from error


def too_slow(seconds: float) -> ApiError:
    return ApiError(504, f"The answer took longer than {seconds:g} seconds.", code="timeout")


class Work:
    """Requests of one client to one backend. Every way out must pass `cancel`."""

    def __init__(self, shop: Workshop, model: str, backend: Backend, param: str):
        """`param`: the field that errors are about if they do not say."""
        self._shop, self._model, self._backend, self._param = shop, model, backend, param
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        self._open: dict[int, int] = {}  # answers of each request that hold room
        self._left = 0  # answers whose end was not passed on
        self._begun = time.monotonic()
        self._deadline = self._loop.time() + shop.seconds
        self._first, self._cancelled = True, False

    async def begin(self, makers: Sequence[Callable[[], Request]], choices: int) -> None:
        """Submits a request of each maker, with so many choices. ApiError if one is refused; then none goes on."""
        self._left = len(makers) * choices
        self._shop.room.take(self._left)
        self._open = dict.fromkeys(range(len(makers)), choices)
        number = -1
        try:
            async with asyncio.timeout_at(self._deadline):
                for number, make in enumerate(makers):
                    future = self._shop.submit(partial(self._submit, number, make))
                    future.add_done_callback(partial(self._submitted, number))
                    ticket = await asyncio.wrap_future(future)
                    if ticket.begun is not None:
                        await asyncio.wrap_future(ticket.begun)
        except BaseException as error:  # also if the client leaves meanwhile
            self.cancel()
            for later in range(number + 1, len(makers)):
                self._close(later)
            if isinstance(error, UserError):
                raise from_user_error(error, self._param, self._shop.sources) from error
            if isinstance(error, TimeoutError):
                raise too_slow(self._shop.seconds) from None
            raise

    def _submit(self, number: int, make: Callable[[], Request]) -> Ticket:
        """In a thread."""
        if self._cancelled:
            raise UserError("the client has left")
        ticket = self._backend.submit(make(), partial(self._deliver, number))
        self._tickets.append(ticket)
        if self._cancelled:
            ticket.cancel()
        return ticket

    def _submitted(self, number: int, future: "Future[Ticket]") -> None:
        if future.cancelled() or future.exception() is not None:
            self._soon(self._close, number)

    def _deliver(self, number: int, piece: Piece) -> None:
        self._soon(self._arrive, number, piece)

    def _soon(self, function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has gone, and nobody waits
            self._loop.call_soon_threadsafe(function, *arguments)

    def _arrive(self, number: int, piece: Piece) -> None:
        if piece.finish is not None and self._open.get(number):
            self._open[number] -= 1
            self._shop.room.give(1)
        if self._first and (piece.text or piece.tokens):
            self._first = False
            self._shop.measures.first_token.labels(self._model).observe(time.monotonic() - self._begun)
        if piece.usage is not None:
            self._shop.measures.tokens.labels(self._model, "completion").inc(piece.usage.completion_tokens)
            if piece.choice == 0:
                self._shop.measures.tokens.labels(self._model, "prompt").inc(piece.usage.prompt_tokens)
        self._queue.put_nowait((number, piece))

    def _close(self, number: int) -> None:
        self._shop.room.give(self._open.pop(number, 0))

    def cancel(self) -> None:
        """Stops what is open. The room is given back as the answers end."""
        self._cancelled = True
        if any(self._open.values()):
            for ticket in list(self._tickets):
                ticket.cancel()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(number of the request, piece) until all answers are finished. ApiError if one breaks off: 500 for a fault of
        the backend, 503 if it closes, 504 if the time is over."""
        while self._left > 0:
            try:
                async with asyncio.timeout_at(self._deadline):
                    number, piece = await self._queue.get()
            except TimeoutError:
                raise too_slow(self._shop.seconds) from None
            if piece.finish == "error":
                message = told(piece.error or "The model failed.", self._shop.sources)
                raise ApiError(500, message, code="model_error")
            if piece.finish == "cancelled":
                raise ApiError(503, "The answer was broken off: the server is stopping.", code="cancelled")
            self._left -= piece.finish is not None
            yield number, piece
