"""Which document goes into which row: best fit over a shuffled order, for millions of documents, once.

A plan is a folder beside the shards, named by all that it depends on:

rows.npy       int64, rows + 1: row i holds documents[rows[i] : rows[i + 1]]
documents.npy  int64, as many as there are
"""

import shutil
from array import array
from pathlib import Path

import numpy as np

from mengya import durable
from mengya.data.shards import Shards

_AT_ONCE = 1 << 16


def make_plan(shards: Shards, seq_len: int, seed: int, group: int) -> Path:
    """The folder of the plan, made unless it exists. After a crash or a power cut, no half plan has this name."""
    folder = shards.directory / f"packed-{len(shards)}-{shards.meta['tokens']}-{seq_len}-{seed}-{group}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        order = np.random.default_rng(seed).permutation(len(shards) // group)
        rows, documents = best_fit(shards.lengths, order, seq_len, group)
        np.save(partial / "rows.npy", rows)
        np.save(partial / "documents.npy", documents)
        durable.flush_tree(partial)
        durable.rename(partial, folder)
    return folder


def best_fit(lengths: np.ndarray, order: np.ndarray, seq_len: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, documents) as in a plan. `order` is that of the groups of `group` consecutive documents, each of which
    stays in one row. The last token of a document is only predicted, so a document may have seq_len + 1 tokens."""
    documents = (order[:, None] * group + np.arange(group)).ravel()
    needs = np.minimum(lengths[documents], seq_len).reshape(-1, group).sum(1, dtype=np.int32)
    assert lengths.max() <= seq_len + 1 and needs.max() <= seq_len
    row_of = np.repeat(_place(needs, seq_len), group)
    rows = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(row_of))])
    return rows, documents[np.argsort(row_of, kind="stable")]


def _place(needs: np.ndarray, seq_len: int) -> np.ndarray:
    """The row of each need: among the open rows with the least sufficient space the one filled last, else a new row.

    Rows with the same free space are a stack, linked through `below`; `top` has the uppermost row for each free space,
    and bit s of `spaces` says whether there is a row with free space s.
    """
    top, below = array("i", [-1]) * (seq_len + 1), array("i", [-1]) * len(needs)
    placed, spaces, rows = array("i"), 0, 0
    for begin in range(0, len(needs), _AT_ONCE):
        for need in needs[begin : begin + _AT_ONCE].tolist():
            enough = spaces >> need
            if enough:
                space = need + (enough & -enough).bit_length() - 1
                row = top[space]
                top[space] = below[row]
                if below[row] < 0:
                    spaces ^= 1 << space
            else:
                row, space = rows, seq_len
                rows += 1
            placed.append(row)
            left = space - need
            if left:
                below[row], top[left] = top[left], row
                spaces |= 1 << left
    return np.frombuffer(placed, np.int32)
