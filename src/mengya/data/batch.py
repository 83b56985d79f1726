"""What an objective sees of the data."""

from dataclasses import dataclass

from torch import Tensor

IGNORE = -100
"""Label of a position that is not supervised."""


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
        names = ("input_ids", "labels", "position_ids", "starts", "sequence_ids")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return Batch(**moved, sequences=self.sequences, count=self.count)
