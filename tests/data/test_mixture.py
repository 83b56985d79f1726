"""Mixtures: shares are kept everywhere, sources are walked fairly, and the row is a function of its number alone."""

import numpy as np
import pytest
import torch

from mengya.batch import IGNORE
from mengya.data.mixture import HeldoutPart, Mixture, TextAmongPairs, heldout_metrics, names_of, with_replay
from mengya.data.packing import BatchSource, PackedGroups, PackedText, in_order
from mengya.data.shards import Shards, ShardWriter
from mengya.errors import UserError


class Rows:
    """A packer that only has a size."""

    seq_len, per_count = 4, 0

    def __init__(self, size):
        self._size = size

    def __len__(self):
        return self._size

    def row(self, index):
        raise AssertionError("no row is needed")


def mix(sizes, weights, seed=0):
    return Mixture([Rows(size) for size in sizes], weights, seed)


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ([100, 300], [0.3, 0.7], [120, 280]),
        ([100, 300], [3, 7], [120, 280]),  # need not add up to 1
        ([100, 300], None, [100, 300]),
        ([10, 10, 10], [1, 1, 2], [8, 7, 15]),
        ([2, 1], [1e-9, 1.0], [1, 2]),  # every source comes at least once
        ([1, 1, 1], [0.98, 0.01, 0.01], [1, 1, 1]),
    ],
)
def test_an_epoch_has_as_many_rows_as_all_sources_and_each_gives_its_share(sizes, weights, counts):
    mixture = mix(sizes, weights)
    assert len(mixture) == sum(sizes) and mixture.counts.tolist() == counts
    for epoch in range(3):
        drawn = [mixture.place(epoch * len(mixture) + i)[0] for i in range(len(mixture))]
        assert np.bincount(drawn, minlength=len(sizes)).tolist() == counts


def test_every_part_of_a_run_is_mixed_as_the_whole():
    mixture = mix([1000, 3000], [0.3, 0.7])
    source = np.array([mixture.place(i)[0] for i in range(8000)])
    for begin in range(0, 8000, 50):
        assert abs((source[begin : begin + 50] == 0).sum() - 15) <= 2
    gaps = np.diff(np.flatnonzero(source == 0))
    assert len(set(gaps.tolist())) > 3, "the order has a pattern"


def test_a_small_source_repeats_in_new_orders_and_a_large_one_is_walked_without_repetition():
    mixture = mix([10, 1000], [0.5, 0.5])
    places = [mixture.place(i) for i in range(2 * len(mixture))]
    passes = {}
    for source, walk, index in places:
        passes.setdefault((source, walk), []).append(index)
    small = [rows for (source, _), rows in passes.items() if source == 0]
    assert len(small) == 101 and all(sorted(rows) == list(range(10)) for rows in small[:-1])
    assert len({tuple(rows) for rows in small}) > 95
    large = passes[1, 0]
    assert sorted(large) == list(range(1000)) and len(passes[1, 1]) == 10  # 2 epochs of 505


def test_the_row_is_a_function_of_seed_and_number():
    mixture, other = mix([7, 30], [0.6, 0.4], seed=3), mix([7, 30], [0.6, 0.4], seed=3)
    forwards = [mixture.place(i) for i in range(200)]
    assert [other.place(i) for i in reversed(range(200))] == forwards[::-1]
    assert [mix([7, 30], [0.6, 0.4], seed=4).place(i) for i in range(200)] != forwards


def write(directory, tokens):
    with ShardWriter(directory, 1000) as writer:
        for token in tokens:
            writer.append([token] * 3)
    return PackedText(Shards(directory), 4, 0, seed=0)


def test_batches_hold_the_rows_of_the_mixture_whatever_the_ranks(tmp_path):
    packers = [write(tmp_path / "a", range(1, 21)), write(tmp_path / "b", range(101, 131))]
    mixture = Mixture(packers, [0.5, 0.5], seed=1)
    assert mixture.ordered and not packers[0].ordered
    source = BatchSource(mixture, 10, 5, seed=1)
    assert source.steps(1.0) == 5
    for step in (0, 7, 3):
        ids = torch.cat([batch.input_ids for batch in source(step)])
        expected = [packers[s].row(i).input_ids for s, _, i in (mixture.place(step * 10 + n) for n in range(10))]
        assert ids.tolist() == np.stack(expected).tolist()
        halves = [BatchSource(Mixture(packers, [0.5, 0.5], 1), 10, 0, 1, rank, 2)(step)[0] for rank in range(2)]
        assert torch.equal(torch.cat([half.input_ids for half in halves]), ids)


def test_heldout_loss_of_a_mixture_is_the_mean_by_shares_and_its_bits_are_by_bytes():
    parts = [HeldoutPart("a", Rows(1), 0.25, 2.0), HeldoutPart("b", Rows(1), 0.75, 4.0)]
    found = heldout_metrics(parts, [2 * np.log(2), 4 * np.log(2)])
    assert found == pytest.approx(
        {
            "heldout_loss": 3.5 * np.log(2),
            "heldout_bits_per_byte": 3.5 / 3.5,  # bits / (0.25 x 2 + 0.75 x 4 bytes)
            "heldout_loss/a": 2 * np.log(2),
            "heldout_loss/b": 4 * np.log(2),
            "heldout_bits_per_byte/a": 1.0,
            "heldout_bits_per_byte/b": 1.0,
        }
    )
    assert heldout_metrics([HeldoutPart("x", Rows(1))], [0.5]) == {"heldout_loss": 0.5}


def test_names():
    assert names_of(["runs/a", "runs/b/"]) == ["a", "b"]
    assert names_of(["one/tokenize", "two/tokenize", "zh"]) == ["tokenize-1", "tokenize-2", "zh"]
    with pytest.raises(UserError, match="a is given twice; give it once, with a larger weight"):
        names_of(["a", "b", "a"])


def pairs(directory):
    with ShardWriter(directory, 1000, columns={"mask": "uint8"}) as writer:
        for token in range(200, 240):
            writer.append([token, token], mask=[0, 1])
    return PackedGroups(Shards(directory), 4, 0, seed=0, group=2)


def test_replay_gives_its_share_of_the_rows_and_an_epoch_of_the_others(tmp_path):
    rows, text = pairs(tmp_path / "rows"), TextAmongPairs(write(tmp_path / "text", range(1, 1000)), 2)
    mixture = with_replay(rows, text, 0.2, seed=1)
    assert len(rows) == 20 and len(mixture) == 25 and mixture.counts.tolist() == [20, 5]
    for epoch in range(3):
        drawn = [mixture.place(epoch * 25 + i) for i in range(25)]
        assert sorted(index for source, _, index in drawn if source == 0) == list(range(20))
    texts = {index for n in range(250) for source, _, index in [mixture.place(n)] if source == 1}
    assert len(texts) == 50  # none twice, while there are others


def test_text_among_pairs_has_labels_but_no_sequence(tmp_path):
    rows, text = pairs(tmp_path / "rows"), TextAmongPairs(write(tmp_path / "text", range(1, 200)), 2)
    (batch,) = BatchSource(with_replay(rows, text, 0.4, seed=1), 10, 0, seed=1)(0)
    of_text = (batch.input_ids < 200).all(1)
    assert of_text.sum() == 4 and batch.sequences == 12 and batch.count == 6 + 4
    assert (batch.sequence_ids[of_text] == -1).all() and (batch.labels[of_text] != IGNORE).all()
    assert sorted(set(batch.sequence_ids[~of_text].flatten().tolist())) == list(range(12))


def test_rows_of_padding_count_nothing(tmp_path):
    (whole,) = in_order(pairs(tmp_path / "rows"), 32, 32)
    assert len(whole.input_ids) == 32 and whole.count == 20
