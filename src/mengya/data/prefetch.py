"""Input that never starves the model: reading, packing and copying the next step's batches while one is computed."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from mengya.batch import Batch, Source

Copied = tuple[list[Batch], torch.cuda.Event | None]


def prefetch(source: Source, steps: range, device: torch.device) -> Generator[tuple[int, list[Batch]], None, None]:
    """(step, its batches on `device`) in order, made up to `source.ahead` steps early in a background thread.

    Errors of the thread surface here. A source with `ahead` 0 is called when its step is asked for, in the caller's
    thread. Close the generator (or exhaust it) to end the thread.
    """
    copy = _Copier(device) if device.type == "cuda" else lambda batches: ([b.to(str(device)) for b in batches], None)
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


def _received(copied: Copied) -> list[Batch]:
    batches, event = copied
    if event is not None:
        event.wait()
        for batch in batches:  # made on the other stream, used on this one
            batch.record_stream(torch.cuda.current_stream())
    return batches


class _Copier:
    """Host to device through pinned memory, on a stream of its own."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)

    def __call__(self, batches: list[Batch]) -> Copied:
        with torch.cuda.stream(self._stream):
            moved = [batch.pin().to(str(self._device)) for batch in batches]
            return moved, self._stream.record_event()
