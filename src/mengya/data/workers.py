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
"""So many items are worked on in this process before others are started, which takes a second."""
_AHEAD = 2
"""Items that wait, for each process."""


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`function(item)` of each item, in order; with more than one worker from so many other processes.

    The results do not depend on `workers`. `function` (sent to each process once), items and results must pickle then.
    Items should be large: some 10 ms of work or more. The first exception surfaces here, with its traceback from the
    process as its cause; Ctrl-C, an error and the end of this process end the others. UserError: one was killed.
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
            if len(waiting) > _AHEAD * workers:
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
"""Of this process, if it is a worker."""


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
