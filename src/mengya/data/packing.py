"""Packing documents into rows of `seq_len` tokens, without dropping a token or letting documents see each other.

A packer is a fixed list of rows, a pure function of the shards and a seed. The order of an epoch is a pure function of
the seed and the epoch, so the position of the iterator is the number of the step, and nothing else.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch

from mengya import ranks
from mengya.batch import IGNORE, Batch, Source
from mengya.data.best_fit import make_plan
from mengya.data.shards import Shards
from mengya.errors import UserError


class PackedRow(NamedTuple):
    """One packed row; every array is (seq_len,)."""

    input_ids: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    sequence_ids: np.ndarray
    """Number of the piece within the row; -1 for padding, and for text among pairs."""


class Packer(Protocol):
    seq_len: int
    per_count: int = 0
    """Sequences that count as one in Batch.count (2 for pairs); 0: supervised tokens are counted."""
    ordered: bool = False
    """Whether `row` takes the number of a row in a training run, counted from 0 through all epochs, as in a mixture.
    Otherwise the rows of each epoch are shuffled."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> PackedRow: ...


def _empty_row(seq_len: int, eos_id: int) -> PackedRow:
    return PackedRow(
        np.full(seq_len, eos_id, np.int64),
        np.full(seq_len, IGNORE, np.int64),
        np.arange(seq_len, dtype=np.int32),  # padding attends to itself alone
        np.full(seq_len, -1, np.int64),
    )


class PackedText(Packer):
    """Plain documents as one stream, `<sep> doc <sep> doc ...`, cut every `seq_len` tokens.

    The separator before a document is its first input and, as a label, the end of the document before, so every token
    of the text is predicted once. A document that a cut divides goes on in the next row, without its past.
    """

    def __init__(self, shards: Shards, seq_len: int, eos_id: int, seed: int):
        assert len(shards)
        self.seq_len = seq_len
        self._shards, self._eos_id = shards, eos_id
        self._order = np.random.default_rng(seed).permutation(len(shards))
        self._ends = np.cumsum(shards.lengths[self._order] + 1)  # in the stream, separators included

    def __len__(self) -> int:
        return -(-int(self._ends[-1]) // self.seq_len)

    def row(self, index: int) -> PackedRow:
        row = _empty_row(self.seq_len, self._eos_id)
        begin = index * self.seq_len
        end = min(begin + self.seq_len, int(self._ends[-1]))
        stream = np.full(self.seq_len + 1, self._eos_id, np.int64)  # one more, for the last label
        places = np.searchsorted(self._ends, [begin, end], side="right")
        for piece, place in enumerate(range(places[0], min(places[1] + 1, len(self._order)))):
            document, stop = self._order[place], int(self._ends[place])
            low, high = (int(x) for x in self._shards.offsets[document : document + 2])
            separator = stop - (high - low) - 1  # where it stands in the stream
            text, stop = max(begin, separator + 1), min(stop, end + 1)
            low -= separator + 1
            stream[text - begin : stop - begin] = self._shards.tokens[low + text : low + stop]
            column = max(begin, separator) - begin
            columns = slice(column, min(stop, end) - begin)
            row.starts[columns], row.sequence_ids[columns] = column, piece
        row.input_ids[: end - begin] = stream[: end - begin]
        row.labels[: end - begin] = stream[1 : end - begin + 1]
        return row


class PackedGroups(Packer):
    """Masked documents (conversations) in rows, each whole; best fit over a shuffled order.

    `group` consecutive documents stay in one row: 1 for conversations, 2 for preference pairs. They fit: see
    data/fitting.py. The plan of the rows is made once, by rank 0, in a folder beside the shards, which all ranks map
    into memory.
    """

    def __init__(self, shards: Shards, seq_len: int, eos_id: int, seed: int, group: int = 1):
        assert len(shards) and "mask" in shards.columns and len(shards) % group == 0
        self.seq_len = seq_len
        self.per_count = group if group > 1 else 0
        self._shards, self._eos_id = shards, eos_id
        plan = ranks.on_main(lambda: make_plan(shards, seq_len, seed, group))
        # As plain arrays: slices of a memmap are slower by a microsecond each.
        self._rows, self._documents = (
            np.asarray(np.load(plan / f"{name}.npy", mmap_mode="r")) for name in ("rows", "documents")
        )

    def __len__(self) -> int:
        return len(self._rows) - 1

    def row(self, index: int) -> PackedRow:
        row = _empty_row(self.seq_len, self._eos_id)
        tokens, mask = self._shards.tokens, self._shards.columns["mask"]
        column = 0
        for piece, document in enumerate(self._documents[self._rows[index] : self._rows[index + 1]].tolist()):
            low, high = (int(x) for x in self._shards.offsets[document : document + 2])
            after = column + min(high - low, self.seq_len)
            row.input_ids[column:after] = tokens[low : low + after - column]
            following = tokens[low + 1 : high].astype(np.int64)
            row.labels[column : column + len(following)] = np.where(mask[low + 1 : high] == 1, following, IGNORE)
            row.starts[column:after], row.sequence_ids[column:after] = column, piece
            column = after
        return row


def make_batch(rows: list[PackedRow], per_count: int) -> Batch:
    """Stack rows; sequences are numbered through the batch.

    Where pairs are counted, a row of text counts as much as a pair.
    """
    starts = np.stack([row.starts for row in rows])
    labels = np.stack([row.labels for row in rows])
    sequence_ids, sequences = [], 0
    for row in rows:
        sequence_ids.append(np.where(row.sequence_ids < 0, -1, row.sequence_ids + sequences))
        sequences += int(row.sequence_ids.max()) + 1
    texts = sum(int(row.sequence_ids.max()) < 0 and (row.labels != IGNORE).any() for row in rows)
    return Batch(
        input_ids=torch.from_numpy(np.stack([row.input_ids for row in rows])),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(np.arange(starts.shape[1], dtype=np.int64) - starts),
        starts=torch.from_numpy(starts),
        sequence_ids=torch.from_numpy(np.stack(sequence_ids)),
        sequences=sequences,
        count=sequences // per_count + int(texts) if per_count else int((labels != IGNORE).sum()),
    )


class BatchSource(Source):
    """The batches of a training run: `source(step)` gives this rank's micro-batches of one optimizer step.

    The rows of a step are the same for any number of ranks; each rank takes an equal share of neighbours.
    """

    def __init__(
        self, packer: Packer, rows_per_step: int, rows_per_batch: int, seed: int, rank: int = 0, ranks: int = 1
    ):
        """`rows_per_batch` is a maximum; 0: all rows of a rank at once."""
        self._rows = rows_per_rank(rows_per_step, rows_per_batch, ranks)
        self.packer = packer
        self.rows_per_step, self.rows_per_batch = rows_per_step, min(rows_per_batch or self._rows, self._rows)
        self._rank, self._seed = rank, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def _row(self, number: int) -> PackedRow:
        if self.packer.ordered:
            return self.packer.row(number)
        epoch, index = divmod(number, len(self.packer))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self.packer))
        return self.packer.row(int(self._order[index]))

    def __call__(self, step: int) -> list[Batch]:
        first = step * self.rows_per_step + self._rank * self._rows
        rows = [self._row(first + i) for i in range(self._rows)]
        size = self.rows_per_batch
        return [make_batch(rows[i : i + size], self.packer.per_count) for i in range(0, len(rows), size)]

    def steps(self, epochs: float) -> int:
        """Optimizer steps of so many epochs, at least 1."""
        return max(1, round(epochs * len(self.packer) / self.rows_per_step))


def rows_per_rank(rows_per_step: int, rows_per_batch: int, ranks: int) -> int:
    """Each rank's share of a step. UserError if the rows cannot be shared evenly; `rows_per_batch` 0: any size."""
    if rows_per_step < ranks:
        raise UserError(
            f"a step has {rows_per_step} rows (batch_tokens / seq_len), so that {ranks - rows_per_step} of {ranks} "
            f"ranks would see no data; set batch_tokens to {ranks} x seq_len at least, or start "
            f"{rows_per_step} processes"
        )
    if rows_per_step % ranks:
        fewer = next(n for n in range(ranks, 0, -1) if rows_per_step % n == 0)
        more = -(-rows_per_step // ranks) * ranks
        raise UserError(
            f"the {rows_per_step} rows of a step (batch_tokens / seq_len) cannot be shared evenly by {ranks} ranks; "
            f"set batch_tokens to {more} x seq_len, or start {fewer} processes"
        )
    share = rows_per_step // ranks
    if rows_per_batch and share % min(rows_per_batch, share):
        of = "a step" if ranks == 1 else f"a step for each of {ranks} ranks"
        raise UserError(
            f"{share} rows {of} are not a multiple of {rows_per_batch} rows a micro-batch; "
            f"set micro_batch to a divisor of {share}"
        )
    return share


def in_order(packer: Packer, rows_per_batch: int, max_rows: int, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    """The first rows of a packer, at most `max_rows`, for held-out measurement; the ranks take the batches in turn.

    The last batch is filled up with empty rows. Every rank gets the same number of batches; some may be empty.
    """
    count = min(len(packer), max_rows)
    empty = _empty_row(packer.seq_len, int(packer.row(0).input_ids[0]))
    for begin in range(rank * rows_per_batch, count + rank * rows_per_batch, ranks * rows_per_batch):
        rows = [packer.row(i) for i in range(begin, min(begin + rows_per_batch, count))]
        rows += [empty] * (rows_per_batch - len(rows))
        yield make_batch(rows, packer.per_count)
