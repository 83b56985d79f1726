"""Several sources of rows as one, each with its share.

An epoch of a mixture has as many rows as all its sources together, unless it is told otherwise, and each source gives
its share of them. A source whose share is larger than its size comes more than once in an epoch, in a new order each
time; a source whose share is smaller lasts for several epochs before a row is repeated. A row is a pure function of the
seed and its number.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mengya.data.packing import PackedRow, Packer
from mengya.errors import UserError


def shares_of(weights: Sequence[float]) -> list[float]:
    """Weights as parts of 1."""
    return [weight / sum(weights) for weight in weights]


def _divide(total: int, weights: Sequence[float]) -> np.ndarray:
    """`total` in whole parts as near to the weights as can be (largest remainders), at least 1 each."""
    exact = np.array(shares_of(weights)) * total
    parts = np.maximum(np.floor(exact).astype(np.int64), 1)
    while parts.sum() != total:
        error = exact - parts
        if parts.sum() < total:
            parts[np.argmax(error)] += 1
        else:
            parts[np.argmin(np.where(parts > 1, error, np.inf))] -= 1
    return parts


class Mixture(Packer):
    """Rows of several packers, all of one length and counted alike."""

    ordered = True

    def __init__(self, packers: Sequence[Packer], weights: Sequence[float] | None, seed: int, rows: int | None = None):
        """`weights`: share of the rows that come from each; None: as many as it has. `rows`: of an epoch."""
        (self.seq_len,) = {packer.seq_len for packer in packers}
        (self.per_count,) = {packer.per_count for packer in packers}
        self._packers, self._seed = list(packers), seed
        sizes = [len(packer) for packer in packers]
        self.counts = _divide(rows or sum(sizes), weights if weights is not None else sizes)
        """Rows of each source in an epoch."""
        self._epoch, self._slots = -1, np.empty((0, 2), np.int64)
        self._passes: list[tuple[int, np.ndarray]] = [(-1, np.empty(0, np.int64)) for _ in packers]

    def __len__(self) -> int:
        """Rows in an epoch."""
        return int(self.counts.sum())

    def place(self, number: int) -> tuple[int, int, int]:
        """The source of the row with this number in a training run, the pass over the source, and its row there."""
        epoch, index = divmod(number, len(self))
        if epoch != self._epoch:
            self._epoch, self._slots = epoch, self._interleaved(epoch)
        source, nth = (int(x) for x in self._slots[index])
        walk, position = divmod(epoch * int(self.counts[source]) + nth, len(self._packers[source]))
        if walk != self._passes[source][0]:
            order = np.random.default_rng([self._seed, source, walk]).permutation(len(self._packers[source]))
            self._passes[source] = (walk, order)
        return source, walk, int(self._passes[source][1][position])

    def _interleaved(self, epoch: int) -> np.ndarray:
        """(rows, 2) source and number within the source and the epoch, of each row of an epoch.

        The rows of a source are spread evenly, each somewhere in its own stretch, so that every part of an epoch is
        mixed as the whole is.
        """
        rng = np.random.default_rng([self._seed, epoch])
        when = [(np.arange(count) + rng.random(count)) / count for count in self.counts]
        slots = [np.stack([np.full(count, i), np.arange(count)], axis=1) for i, count in enumerate(self.counts)]
        return np.concatenate(slots)[np.argsort(np.concatenate(when), kind="stable")]

    def row(self, number: int) -> PackedRow:
        """The row with this number in a training run, counted from 0 through all epochs."""
        source, _, index = self.place(number)
        return self._packers[source].row(index)


class TextAmongPairs(Packer):
    """Rows of plain text that are no sequences, so that they can stand among pairs."""

    def __init__(self, text: Packer, per_count: int):
        self.seq_len, self.per_count, self._text = text.seq_len, per_count, text

    def __len__(self) -> int:
        return len(self._text)

    def row(self, index: int) -> PackedRow:
        row = self._text.row(index)
        return row._replace(sequence_ids=np.full_like(row.sequence_ids, -1))


def with_replay(packer: Packer, text: Packer, share: float, seed: int) -> Mixture:
    """`packer` with rows of text in between, which are this share of all; its own rows come once an epoch."""
    return Mixture([packer, text], [1 - share, share], seed, max(2, round(len(packer) / (1 - share))))


class HeldoutPart(NamedTuple):
    """A source of held-out text."""

    name: str
    packer: Packer
    share: float = 1.0
    """Of the predicted tokens; the shares of all parts add up to 1."""
    bytes_per_token: float = 0.0
    """UTF-8 bytes of its text that a predicted token stands for; 0: it is not plain text."""


def heldout_metrics(parts: Sequence[HeldoutPart], losses: Sequence[float]) -> dict[str, float]:
    """`heldout_loss`, the mean by shares, and of plain text `heldout_bits_per_byte`; of several parts each one's, too.

    The bits per byte of a mixture are its bits by its bytes, so that a part weighs by its share of the bytes.
    """
    mean = sum(part.share * loss for part, loss in zip(parts, losses, strict=True))
    rows = [("", mean, sum(part.share * part.bytes_per_token for part in parts))]
    if len(parts) > 1:
        rows += [(f"/{part.name}", loss, part.bytes_per_token) for part, loss in zip(parts, losses, strict=True)]
    found: dict[str, float] = {}
    for name, loss, size in rows:
        found[f"heldout_loss{name}"] = loss
        if size:
            found[f"heldout_bits_per_byte{name}"] = loss / math.log(2) / size
    return found


def names_of(paths: Sequence[str]) -> list[str]:
    """Short names of directories, each only once: UserError if one directory is given twice."""
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path} is given twice; give it once, with a larger weight")
    short = [path.rstrip("/").rpartition("/")[2] for path in paths]
    return [name if short.count(name) == 1 else f"{name}-{i + 1}" for i, name in enumerate(short)]
