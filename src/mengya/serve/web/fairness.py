"""Who may go on when all want to: no owner keeps the others waiting with many or slow files."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK = 0.2
"""Seconds between two looks at whether somebody who waits still wants to."""


class Turns:
    """`most` go on at a time, `each` of them of one owner; a turn that comes free goes to who has the fewest."""

    def __init__(self, most: int, each: int):
        self._most, self._each = most, each
        self._taken: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, owner: str, going: Callable[[], None]) -> Iterator[None]:
        """Blocks until it is their turn. What `going` raises, which is called now and then, ends the waiting."""
        with self._changed:
            self._waiting[owner] += 1
            try:
                while not self._free(owner):
                    self._changed.wait(_LOOK)
                    going()
                self._taken[owner] += 1
            finally:
                self._waiting[owner] -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken[owner] -= 1
                self._changed.notify_all()

    def _free(self, owner: str) -> bool:
        own = self._taken[owner]
        if self._taken.total() >= self._most or own >= self._each:
            return False
        return not any(count and self._taken[other] < own for other, count in self._waiting.items())
