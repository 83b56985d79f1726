"""Best fit: the rows of the simplest implementation, for millions of documents, planned once."""

import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from mengya.data import best_fit as module
from mengya.data.best_fit import best_fit, make_plan
from mengya.data.packing import PackedGroups
from mengya.data.shards import Shards, ShardWriter


def simplest(lengths, order, seq_len, group):
    """Rows of documents."""
    rows, free = [], {}  # free space -> rows, the one touched last at the end
    for unit in order:
        documents = range(int(unit) * group, int(unit) * group + group)
        need = sum(min(int(lengths[document]), seq_len) for document in documents)
        space = min((s for s in free if s >= need), default=0)
        if space:
            row = free[space].pop()
            if not free[space]:
                del free[space]
        else:
            row, space = len(rows), seq_len
            rows.append([])
        rows[row].extend(documents)
        if space > need:
            free.setdefault(space - need, []).append(row)
    return rows


@pytest.mark.parametrize("group", [1, 2, 3])
def test_the_rows_are_those_of_the_simplest_implementation(group, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 7)
    rng = np.random.default_rng(group)
    for _ in range(150):
        seq_len, units = int(rng.integers(group, 70)), int(rng.integers(1, 90))
        longest = seq_len + 1 if group == 1 else seq_len // group
        lengths = rng.integers(0, longest + 1, units * group)
        order = rng.permutation(units)
        rows, documents = best_fit(lengths, order, seq_len, group)
        assert [documents[a:z].tolist() for a, z in pairwise(rows)] == simplest(lengths, order, seq_len, group)


def test_large_data_take_seconds_and_little_memory():
    """3.5 million conversations may take 30 s and 1 GB on two cores: a fiftieth of them, a fiftieth of both."""
    rng = np.random.default_rng(0)
    count = 70_000
    lengths, order = rng.integers(1, 513, count), rng.permutation(count)
    for seq_len in (512, 4096):
        begun = time.process_time()
        rows, _ = best_fit(lengths, order, seq_len, 1)
        assert time.process_time() - begun < 30 / 50
        assert lengths.sum() <= (len(rows) - 1) * seq_len < (1.2 if seq_len == 512 else 1.01) * lengths.sum()
    tracemalloc.start()
    best_fit(lengths, order, 512, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**30 / 50


@pytest.fixture
def shards(tmp_path):
    with ShardWriter(tmp_path / "s", 900, {"mask": "uint8"}) as writer:
        for length in [5, 3, 6, 2, 7, 8, 1, 4] * 4:
            writer.append(list(range(length)), mask=[1] * length)
    return Shards(tmp_path / "s")


def test_a_plan_is_made_once_and_found_again(shards, monkeypatch):
    first = PackedGroups(shards, 8, 0, seed=1)
    monkeypatch.setattr(module, "best_fit", None)  # cannot be called
    again = PackedGroups(Shards(shards.directory), 8, 0, seed=1)
    assert [again.row(i).input_ids.tolist() for i in range(len(again))] == [
        first.row(i).input_ids.tolist() for i in range(len(first))
    ]
    for other in ({"seq_len": 9}, {"seed": 2}, {"group": 2}):
        with pytest.raises(TypeError):
            PackedGroups(shards, **({"seq_len": 8, "eos_id": 0, "seed": 1} | other))


def test_a_plan_that_was_cut_off_is_made_again(shards, monkeypatch):
    def cut_off(path, content):
        path.write_bytes(b"half")
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(module.np, "save", cut_off)
        with pytest.raises(OSError):
            make_plan(shards, 8, 1, 1)
    assert len(PackedGroups(shards, 8, 0, seed=1)) > 0


def test_only_rank_0_plans(shards, launch_ranks, tmp_path):
    setup = f"""
import os, sys
from mengya import ranks
from mengya.data import best_fit
from mengya.data.packing import PackedGroups
from mengya.data.shards import Shards
with ranks.group():
    if ranks.rank() == 1:
        best_fit.best_fit = None
    packer = PackedGroups(Shards({str(shards.directory)!r}), 8, 0, seed=1)
    sys.stderr.write(str([packer.row(i).input_ids.tolist() for i in range(len(packer))]))
"""
    (code, first), (other, second) = launch_ranks(cwd=tmp_path, setup=setup).wait()
    assert code == other == 0 and first == second != "[]"
