"""What an objective sees of the data."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100
"""Label of a position that is not supervised."""
_TENSORS = ("input_ids", "labels", "position_ids", "starts", "sequence_ids")


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents; every tensor is (B, T)."""

    input_ids: Tensor
    labels: Tensor
    """The token that follows each position, or IGNORE."""
    position_ids: Tensor
    """Place of each token in its document."""
    starts: Tensor
    """int32: column of the first token of each token's document; a token attends to columns starts .. its own."""
    sequence_ids: Tensor
    """Number of each token's sequence within the batch, counted from 0; -1 for padding."""
    sequences: int
    """How many sequences the batch has."""
    count: int
    """What the summed loss is divided by: supervised tokens, or pairs for preference data."""

    def to(self, device: str) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """In page-locked memory, from which a copy to a GPU does not block."""
        return self._map(Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until what `stream` has to do now is done."""
        for name in _TENSORS:
            getattr(self, name).record_stream(stream)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        moved = {name: change(getattr(self, name)) for name in _TENSORS}
        return Batch(**moved, sequences=self.sequences, count=self.count)
