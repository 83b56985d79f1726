"""Waiting for an answer as long as its backend works on any."""

from queue import Empty, SimpleQueue
from typing import TypeVar

from mengya.errors import UserError
from mengya.infer.backends import Backend

T = TypeVar("T")
_LOOK = 5.0
"""Seconds of silence after which the backend is looked at."""


def awaited(pieces: "SimpleQueue[T]", backend: Backend) -> T:
    """The next of what `backend` delivers. UserError if it has nothing to do: its thread has died, or forgotten it."""
    idle = False
    while True:
        try:
            return pieces.get(timeout=_LOOK)
        except Empty:
            load = backend.load()
            if load.running or load.waiting:
                idle = False
            elif idle:  # twice: a request may be on its way
                raise UserError("the model has stopped working on this answer; try again, or start it again") from None
            else:
                idle = True
