"""Requests as tasks of an event loop in a thread of its own: for engines and clients that are asynchronous."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar

from mengya.errors import UserError
from mengya.infer.backends import Deliver, Load
from mengya.infer.request import Finish, Piece, Usage

T = TypeVar("T")
Pieces = AsyncGenerator[Piece, None]
_CLOSED = "the model is being closed; ask again later"


class Choices:
    """The open choices of a request: each ends once, whatever its engine says or leaves out."""

    def __init__(self, n: int, deliver: Deliver, prompt_tokens: int = 0):
        self._open = dict.fromkeys(range(n), 0)
        """Choice -> tokens that were delivered."""
        self._deliver = deliver
        self._prompt_tokens = prompt_tokens

    def put(self, piece: Piece) -> None:
        """Deliver it; nothing follows the last piece of a choice."""
        if piece.choice in self._open:
            self._open[piece.choice] += len(piece.tokens)
            if piece.finish is not None:
                del self._open[piece.choice]
            self._deliver(piece)

    def end(self, finish: Finish, error: str | None = None) -> None:
        """Finish those that are open still."""
        for choice, tokens in list(self._open.items()):
            self.put(Piece(choice, "", finish=finish, usage=Usage(self._prompt_tokens, tokens), error=error))


class Tasks:
    """`explain` puts an exception of the engine in words for the user."""

    def __init__(self, name: str, explain: Callable[[Exception], str]):
        self._explain = explain
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`, from any thread but that of the loop. UserError if it fails."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except UserError:
            raise
        except Exception as error:
            raise UserError(self._explain(error)) from error
        finally:
            future.cancel()  # Ctrl-C while it waits

    def submit(
        self, begin: Callable[[], Awaitable[Pieces]], n: int, deliver: Deliver, prompt_tokens: int = 0
    ) -> "Ticket":
        """Answer in the background. What fails is the end of the answer; `begun` of the ticket tells if that is
        `begin`."""
        if self._closed:
            raise UserError(_CLOSED)
        begun: Future[None] = Future()
        begun.set_running_or_notify_cancel()  # who waits for it may give up, and it stays
        choices = Choices(n, deliver, prompt_tokens)
        task = self.run(self._start(begin, choices, begun))
        return Ticket(self._loop, task, prompt_tokens, begun)

    def load(self) -> Load:
        return Load(len(self._tasks), 0, 0, 0)

    def close(self, last: Callable[[], Awaitable[Any]] | None = None) -> None:
        """Cancel what is open, do the `last` thing, and end the thread."""
        if self._closed:
            return
        self._closed = True
        try:
            self.run(self._stop(last))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _start(
        self, begin: Callable[[], Awaitable[Pieces]], choices: Choices, begun: "Future[None]"
    ) -> asyncio.Task:
        if self._closed:
            raise UserError(_CLOSED)
        task = asyncio.create_task(self._answer(begin, choices, begun))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, begin: Callable[[], Awaitable[Pieces]], choices: Choices, begun: "Future[None]") -> None:
        try:
            pieces = await begin()
        except asyncio.CancelledError:
            begun.set_exception(UserError(_CLOSED))
            choices.end("cancelled")
            return
        except Exception as error:
            told = error if isinstance(error, UserError) else UserError(self._explain(error))
            begun.set_exception(told)
            choices.end("error", str(told))
            return
        begun.set_result(None)
        how: Finish = "error"
        why: str | None = "the engine stopped in the middle of the answer; ask again"
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    choices.put(piece)
        except asyncio.CancelledError:
            how, why = "cancelled", None
        except Exception as error:  # somebody else's engine or server
            why = str(error) if isinstance(error, UserError) else self._explain(error)
        choices.end(how, why)

    async def _stop(self, last: Callable[[], Awaitable[Any]] | None) -> None:
        open_tasks = list(self._tasks)
        for task in open_tasks:
            task.cancel()
        await asyncio.gather(*open_tasks, return_exceptions=True)
        if last is not None:
            await last()


class Ticket:
    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task, prompt_tokens: int, begun: "Future[None]"):
        self._loop, self._task = loop, task
        self.prompt_tokens = prompt_tokens
        self.begun: Future[None] | None = begun

    def cancel(self) -> None:
        if not self._task.done():
            self._loop.call_soon_threadsafe(self._task.cancel)
