"""Shards: whatever the size of the parts, what is read is what was written."""

import json
import random

import numpy as np
import pytest

from mengya.data.packing import PackedGroups, PackedText
from mengya.data.shards import Shards, ShardWriter
from mengya.errors import UserError

DOCUMENTS = [[random.Random(n).randrange(1, 900) for _ in range(n * 7 % 23)] for n in range(60)]


def write(directory, **options):
    columns = {"mask": "uint8", "score": "float32"}
    with ShardWriter(directory, 900, columns, **options) as writer:
        for number, ids in enumerate(DOCUMENTS):
            mask = [token % 2 for token in ids]
            writer.append(ids, 3, (f"{number // 20}.txt", str(number)), mask=mask, score=[t / 7 for t in ids])
    return Shards(directory)


def rows(packer):
    return [np.concatenate([*packer.row(i)]).tolist() for i in range(len(packer))]


@pytest.mark.parametrize("part_tokens", [1, 2, 50, 10_000])
def test_parts_change_nothing_that_is_read(tmp_path, part_tokens):
    whole, parts = write(tmp_path / "whole"), write(tmp_path / "parts", part_tokens=part_tokens)
    assert len(whole.meta["parts"]) == 1 and (len(parts.meta["parts"]) > 1) == (part_tokens < 10_000)
    longest = max(map(len, DOCUMENTS))
    assert all(part["tokens"] < part_tokens + longest for part in parts.meta["parts"])
    tokens = [token for ids in DOCUMENTS for token in ids]
    assert parts.offsets.tolist() == whole.offsets.tolist() == [0, *np.cumsum([len(ids) for ids in DOCUMENTS])]
    assert parts.tokens[:].tolist() == whole.tokens[:].tolist() == tokens
    assert parts.columns["mask"][:].tolist() == [token % 2 for token in tokens]
    assert parts.columns["score"][:].tolist() == np.float32(np.array(tokens) / 7).tolist()
    for number, ids in enumerate(DOCUMENTS):
        low, high = parts.offsets[number : number + 2]
        assert parts.tokens[low:high].tolist() == ids
        assert parts.tokens[low + 1 : high].tolist() == ids[1:]
    assert list(parts.origins()) == [(f"{n // 20}.txt", str(n)) for n in range(len(DOCUMENTS))]
    assert parts.meta["bytes"] == 3 * len(DOCUMENTS)
    for group in (1, 2):
        packers = (PackedGroups(shards, 64, 0, 5, group) for shards in (whole, parts))
        assert rows(next(packers)) == rows(next(packers))
    assert rows(PackedText(whole, 16, 0, 5)) == rows(PackedText(parts, 16, 0, 5))


def test_a_slice_of_a_part_is_not_a_copy(tmp_path):
    shards = write(tmp_path, part_tokens=50)
    low, high = shards.offsets[30:32]
    found = shards.tokens[low:high]
    assert len(found) and not found.flags.writeable
    assert any(np.shares_memory(found, part) for part in shards.tokens._parts)


def test_the_layout_of_an_older_version_is_refused(tmp_path):
    (tmp_path / "shards.json").write_text(json.dumps({"dtype": "uint16", "documents": 1, "tokens": 3, "masked": True}))
    with pytest.raises(UserError, match="has the layout of an older version; tokenize again"):
        Shards(tmp_path)


def test_what_an_earlier_writer_left_behind_goes(tmp_path):
    write(tmp_path, part_tokens=20)
    PackedGroups(Shards(tmp_path), 64, 0, 5)
    with ShardWriter(tmp_path, 900, {"mask": "uint8"}) as writer:
        writer.append([1, 2], mask=[0, 1])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"shards.json", "origins.jsonl.zst", *(f"{n}-00000.bin" for n in ("tokens", "offsets", "mask"))}


def test_a_part_that_is_cut_off_is_refused(tmp_path):
    write(tmp_path, part_tokens=50)
    (tmp_path / "mask-00001.bin").write_bytes(b"\0")
    with pytest.raises(UserError, match="damaged"):
        Shards(tmp_path)
