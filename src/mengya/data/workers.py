"""Work over many items in several processes, with the results in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from mengya.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
_ALONE = 8
"""The number of first items that this process does itself, because it takes a second to start others."""


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`function(item)` of each item, in order. More than one worker: in that many other processes.

    The results do not depend on `workers`. With other processes, `function` (sent to each process once), items and
    results must pickle, and an item should be at least 10 ms of work. The first exception is raised here, with its
    traceback from the process as its cause; Ctrl-C, an error and the end of this process end the others. UserError if
    one was killed.
    """
    source = iter(items)
    yield from map(function, source if workers == 1 else islice(source, _ALONE))
    for item in source:
        yield from _in_processes(function, chain([item], source), workers)


def _in_processes(function: Callable[[T], R], items: Iterator[T], workers: int) -> Iterator[R]:
    # Not fork: torch's threads may hold locks while the memory is copied.
    context = multiprocessing.get_context("forkserver")
    waiting: deque[Future[R]] = deque()
    pool = ProcessPoolExecutor(workers, context, _begin, (function,))
    try:
        for item in items:
            waiting.append(pool.submit(_work, item))
            if len(waiting) > 2 * workers:  # two items wait for each process
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps because memory ran out; run again, with more memory free"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_function: Callable | None = None
"""What this process does with each item, if it is a worker."""


def _begin(function: Callable) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the first one ends us
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    """End with the process that we work for, even if it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(item: Any) -> Any:
    assert _function is not None
    return _function(item)
