"""What training hands from one part to the next: batches, where they come from, and the loss of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

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
    """Number of each token's sequence within the batch, counted from 0; -1 for padding, and for text among pairs."""
    sequences: int
    """How many sequences the batch has."""
    count: int
    """What the summed loss is divided by: supervised tokens, or for preference data pairs and rows of text."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further columns that an objective needs, of any shape: advantages, log-probabilities of another model."""

    def to(self, device: str) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """In page-locked memory, from which a copy to a GPU does not block."""
        return self._map(Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until what `stream` has to do now is done."""
        for tensor in (*(getattr(self, name) for name in _TENSORS), *self.extra.values()):
            tensor.record_stream(stream)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in _TENSORS}
        changed["extra"] = {name: change(tensor) for name, tensor in self.extra.items()}
        return replace(self, **changed)


class Source(Protocol):
    """Where the batches of a training run come from. Derive from it: the defaults suit data from files."""

    ahead: int = 1
    """Steps whose batches may be made early: 1 from files; 0 if they depend on the weights of the step before."""

    def __call__(self, step: int) -> list[Batch]:
        """This rank's micro-batches of an optimizer step."""
        ...

    def whole(self, step: int) -> bool:
        """Whether a checkpoint may be taken after this step: whether `step + 1` can be made from it alone."""
        return True


class Metric(NamedTuple):
    """A figure that is reported beside the loss."""

    sum: Tensor
    """Of a batch. One that is not a scalar (tokens of each expert, say) stays a sum."""
    divisor: Tensor | float | None = None
    """What the sum is divided by, once it is added up over a whole step; None: Batch.count."""


class Loss(NamedTuple):
    total: Tensor
    """Summed over the batch, never averaged; the loop divides by Batch.count."""
    metrics: Mapping[str, Metric]
