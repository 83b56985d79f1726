"""Input that never starves the model: reading, packing and copying the next step's batches while one is computed."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import torch

from mengya.batch import Batch

Copied = tuple[list[Batch], torch.cuda.Event | None]


def prefetch(
    source: Callable[[int], list[Batch]], steps: range, device: torch.device
) -> Generator[tuple[int, list[Batch]], None, None]:
    """(step, its batches on `device`) in order, one step ahead in a background thread, whose errors surface here.

    Close the generator (or exhaust it) to end the thread.
    """
    copy = _Copier(device) if device.type == "cuda" else lambda batches: ([b.to(str(device)) for b in batches], None)
    with ThreadPoolExecutor(1, "input") as thread:
        coming = thread.submit(lambda step: copy(source(step)), steps[0]) if len(steps) else None
        for step in steps:
            assert coming is not None
            batches, copied = coming.result()
            if step + 1 in steps:
                coming = thread.submit(lambda step: copy(source(step)), step + 1)
            if copied is not None:
                copied.wait()
                for batch in batches:  # made on the other stream, used on this one
                    batch.record_stream(torch.cuda.current_stream())
            yield step, batches


class _Copier:
    """Host to device through pinned memory, on a stream of its own."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)

    def __call__(self, batches: list[Batch]) -> Copied:
        with torch.cuda.stream(self._stream):
            moved = [batch.pin().to(str(self._device)) for batch in batches]
            return moved, self._stream.record_event()
