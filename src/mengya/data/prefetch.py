"""The next step's batches are read, packed and copied while one step is computed, so that the model need not wait."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from mengya.batch import Batch, Source

Copied = tuple[list[Batch], torch.cuda.Event | None]


def prefetch(source: Source, steps: range, device: torch.device) -> Generator[tuple[int, list[Batch]], None, None]:
    """(step, its batches on `device`) in order, made up to `source.ahead` steps early in a background thread.

    Errors of the thread surface here. A source with `ahead` 0 is called when its step is asked for, in the caller's
    thread. Close the generator (or exhaust it) to end the thread.
    """
    copy = _copier(device)
    if not source.ahead:
        for step in steps:
            yield step, _received(copy(source(step)))
        return
    coming: deque[Future[Copied]] = deque()
    with ThreadPoolExecutor(1, "input") as thread:
        for step in steps:
            while len(coming) <= source.ahead and step + len(coming) in steps:
                coming.append(thread.submit(lambda step: copy(source(step)), step + len(coming)))
            yield step, _received(coming.popleft().result())


def _copier(device: torch.device) -> Callable[[list[Batch]], Copied]:
    """Host to device; to a GPU through pinned memory, on a stream of its own."""
    if device.type != "cuda":
        return lambda batches: ([batch.to(str(device)) for batch in batches], None)
    stream = torch.cuda.Stream(device)

    def copy(batches: list[Batch]) -> Copied:
        with torch.cuda.stream(stream):
            moved = [batch.pin().to(str(device)) for batch in batches]
            return moved, stream.record_event()

    return copy


def _received(copied: Copied) -> list[Batch]:
    batches, event = copied
    if event is not None:
        event.wait()
        for batch in batches:  # made on the other stream, used on this one
            batch.record_stream(torch.cuda.current_stream())
    return batches
