"""Packing: no token is lost, none is predicted twice, no document sees another, and the position is the step."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from mengya.batch import IGNORE
from mengya.data.packing import BatchSource, PackedGroups, PackedText, in_order, make_batch
from mengya.data.shards import Shards, ShardWriter
from mengya.errors import UserError

SEPARATOR = 0


def write(directory, lengths, masked=False, seed=0):
    """Documents of the given lengths whose tokens are all different, so that a token names its place."""
    with ShardWriter(directory, 60_000, columns={"mask": "uint8"} if masked else {}) as writer:
        token = 1
        for length in lengths:
            ids = list(range(token, token + length))
            writer.append(ids, **({"mask": [int(i % 3 != 0) for i in range(length)]} if masked else {}))
            token += length
    return Shards(directory)


@pytest.mark.parametrize("seq_len", [1, 2, 7, 16, 64, 500])
@pytest.mark.parametrize("lengths", [[1], [5, 1, 30, 2, 17, 16, 15, 1, 1, 64], [200]])
def test_text_rows_hold_every_token_once_and_predict_every_token_once(tmp_path, seq_len, lengths):
    shards = write(tmp_path, lengths)
    packer = PackedText(shards, seq_len, SEPARATOR, seed=3)
    rows = [packer.row(i) for i in range(len(packer))]
    inputs = np.concatenate([r.input_ids[r.sequence_ids >= 0] for r in rows])
    labels = np.concatenate([r.labels[r.labels != IGNORE] for r in rows])
    everything = np.arange(1, sum(lengths) + 1)
    assert sorted(inputs[inputs != SEPARATOR]) == everything.tolist()
    assert sorted(labels[labels != SEPARATOR]) == everything.tolist()
    assert (inputs == SEPARATOR).sum() == (labels == SEPARATOR).sum() == len(lengths)


def test_text_labels_are_the_next_token_of_the_same_document(tmp_path):
    lengths = [5, 1, 30, 2, 17, 16]
    shards = write(tmp_path, lengths)
    last = set(np.cumsum(lengths).tolist())
    first = {end - length + 1 for end, length in zip(np.cumsum(lengths).tolist(), lengths, strict=True)}
    packer = PackedText(shards, 8, SEPARATOR, seed=1)
    for index in range(len(packer)):
        row = packer.row(index)
        for token, label in zip(row.input_ids, row.labels, strict=True):
            if label == IGNORE:
                continue
            if token == SEPARATOR:
                assert label in first
            elif token in last:
                assert label == SEPARATOR
            else:
                assert label == token + 1


@pytest.mark.parametrize("seq_len", [8, 33])
def test_starts_point_at_the_own_document(tmp_path, seq_len):
    lengths = [5, 1, 30, 2, 17, 16]
    packer = PackedText(write(tmp_path, lengths), seq_len, SEPARATOR, seed=1)
    ends = np.cumsum(lengths)
    for index in range(len(packer)):
        row = packer.row(index)
        for column, start in enumerate(row.starts):
            assert start <= column
            if row.sequence_ids[column] < 0:
                assert start == column
                continue
            seen = row.input_ids[start : column + 1]
            assert (seen[1:] != SEPARATOR).all()
            tokens = seen[seen != SEPARATOR]
            assert len({int(np.searchsorted(ends, t)) for t in tokens}) <= 1
            assert start == 0 or row.input_ids[start] == SEPARATOR


@pytest.mark.parametrize("seq_len", [29, 30, 64])
def test_conversations_keep_every_supervised_token(tmp_path, seq_len):
    """The longest has a token more than a row: its last one is only predicted."""
    lengths = [5, 1, 30, 2, 17, 16, 9, 8, 20, 21]
    shards = write(tmp_path, lengths, masked=True)
    packer = PackedGroups(shards, seq_len, SEPARATOR, seed=1)
    rows = [packer.row(i) for i in range(len(packer))]
    labels = np.concatenate([r.labels[r.labels != IGNORE] for r in rows])
    offsets = np.asarray(shards.offsets)
    tokens, mask = shards.tokens[:], shards.columns["mask"][:]
    expected = [
        int(tokens[i])
        for low, high in pairwise(offsets)
        for i in range(low + 1, high)  # the first token of a conversation has no past to be predicted from
        if mask[i]
    ]
    assert sorted(labels.tolist()) == sorted(expected)
    for row in rows:
        for column in np.flatnonzero(row.labels != IGNORE):
            assert row.labels[column] == row.input_ids[column] + 1


def test_whole_conversations_are_not_cut_when_they_fit(tmp_path):
    lengths = [5, 3, 6, 2, 7, 8, 1]
    packer = PackedGroups(write(tmp_path, lengths, masked=True), 8, SEPARATOR, seed=1)
    rows = [packer.row(i) for i in range(len(packer))]
    sizes = [int((row.sequence_ids == piece).sum()) for row in rows for piece in range(row.sequence_ids.max() + 1)]
    assert sorted(sizes) == sorted(lengths)
    assert len(packer) == 4  # 32 tokens in rows of 8: best fit wastes nothing here


def test_pairs_stay_together_and_are_numbered(tmp_path):
    shards = write(tmp_path, [4, 5, 2, 3, 6, 6, 3, 3], masked=True)
    packer = PackedGroups(shards, 12, SEPARATOR, seed=2, group=2)
    batch = make_batch([packer.row(i) for i in range(len(packer))], packer.per_count)
    assert (batch.sequences, batch.count) == (8, 4)
    ends = np.cumsum([4, 5, 2, 3, 6, 6, 3, 3])
    for pair in range(4):
        documents = [
            int(np.searchsorted(ends, batch.input_ids[batch.sequence_ids == 2 * pair + side][0])) for side in (0, 1)
        ]
        assert documents[0] % 2 == 0 and documents[1] == documents[0] + 1


def test_batches_are_a_function_of_the_step_and_an_epoch_covers_every_row(tmp_path):
    packer = PackedText(write(tmp_path, [9] * 40), 10, SEPARATOR, seed=0)
    assert len(packer) == 40
    source, other = (BatchSource(packer, 8, 4, seed=5) for _ in range(2))
    epoch = [source(step) for step in range(5)]
    assert torch.equal(other(3)[1].input_ids, epoch[3][1].input_ids)
    seen = torch.cat([b.input_ids for batches in epoch for b in batches])
    assert sorted(seen.flatten().tolist()) == sorted(
        torch.cat([torch.from_numpy(packer.row(i).input_ids) for i in range(40)]).tolist()
    )
    second = torch.cat([b.input_ids for step in range(5, 10) for b in other(step)])
    assert not torch.equal(seen, second) and sorted(seen.flatten().tolist()) == sorted(second.flatten().tolist())
    assert source.steps(2.0) == 10


def test_the_held_out_pass_measures_each_row_once(tmp_path):
    packer = PackedText(write(tmp_path, [9] * 10), 10, SEPARATOR, seed=0)
    batches = list(in_order(packer, 4, max_rows=100))
    assert [tuple(b.input_ids.shape) for b in batches] == [(4, 10)] * 3
    assert sum(b.count for b in batches) == 100


def test_damaged_and_missing_shards_are_refused(tmp_path):
    with pytest.raises(UserError, match="no token shards"):
        Shards(tmp_path / "nothing")
    write(tmp_path / "s", [5, 6])
    (tmp_path / "s" / "tokens-00000.bin").write_bytes(b"\0\0")
    with pytest.raises(UserError, match="damaged"):
        Shards(tmp_path / "s")


def test_an_interrupted_writer_leaves_nothing_that_looks_whole(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, 100) as writer:
        writer.append([1, 2])
        raise RuntimeError
    with pytest.raises(UserError, match="no token shards"):
        Shards(tmp_path)


def test_large_vocabularies_need_four_bytes(tmp_path):
    with ShardWriter(tmp_path, 70_000) as writer:
        writer.append([69_999, 1])
    assert Shards(tmp_path).tokens[:].tolist() == [69_999, 1]


def test_rows_that_do_not_divide_are_refused(tmp_path):
    packer = PackedText(write(tmp_path, [9]), 4, SEPARATOR, seed=0)
    with pytest.raises(UserError, match="micro_batch"):
        BatchSource(packer, 8, 3, seed=0)


@pytest.fixture
def packer_of_text(tmp_path):
    """40 rows of unequal documents."""
    return PackedText(write(tmp_path, [9, 4, 14] * 13), 10, SEPARATOR, seed=0)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_the_rows_of_a_step(packer_of_text, ranks):
    whole = BatchSource(packer_of_text, 8, 0, seed=5)
    shares = [BatchSource(packer_of_text, 8, 2, 5, rank, ranks) for rank in range(ranks)]
    for step in (0, 3):
        (wanted,) = whole(step)
        parts = [batch for share in shares for batch in share(step)]
        assert len(parts) == 4
        assert torch.equal(torch.cat([batch.input_ids for batch in parts]), wanted.input_ids)
        assert sum(batch.count for batch in parts) == wanted.count


@pytest.mark.parametrize(
    ("rows", "ranks", "message"),
    [
        (8, 3, r"8 rows .* evenly by 3 ranks; set batch_tokens to 9 x seq_len, or start 2 processes"),
        (2, 4, r"a step has 2 rows .* 2 of 4 ranks would see no data; .* at least, or start 2 processes"),
    ],
)
def test_rows_that_ranks_cannot_share(packer_of_text, rows, ranks, message):
    with pytest.raises(UserError, match=message):
        BatchSource(packer_of_text, rows, 0, 0, 0, ranks)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_heldout_rows_are_shared_and_every_rank_has_as_many_batches(packer_of_text, ranks):
    wanted = sum(batch.count for batch in in_order(packer_of_text, 2, 9))
    shares = [list(in_order(packer_of_text, 2, 9, rank, ranks)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert sum(batch.count for share in shares for batch in share) == wanted
