"""Tiny models and hand-made documents for the tests of training."""

import numpy as np
import pytest
import torch

from mengya.data.packing import PackedGroups, PackedText, make_batch
from mengya.data.shards import Shards, ShardWriter
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM

VOCABULARY = 50


@pytest.fixture
def make_model():
    """(seed, **changes of the shape) -> a tiny float32 model with sizeable weights."""

    def make(seed=0, **changes):
        shape = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
        }
        model = CausalLM(ModelConfig(**(shape | changes)))
        model.initialize(torch.Generator().manual_seed(seed))
        return model

    return make


@pytest.fixture
def make_shards(tmp_path):
    """(lengths, masked) -> shards of random documents; masked ones supervise a random part."""

    def make(lengths, masked=False, seed=0):
        rng = np.random.default_rng(seed)
        directory = tmp_path / f"shards-{len(list(tmp_path.iterdir()))}"
        with ShardWriter(directory, VOCABULARY, columns={"mask": "uint8"} if masked else {}) as writer:
            for length in lengths:
                columns = {"mask": rng.integers(0, 2, length).tolist()} if masked else {}
                writer.append(rng.integers(1, VOCABULARY, length).tolist(), **columns)
        return Shards(directory)

    return make


@pytest.fixture
def make_groups(make_shards):
    """(lengths, seq_len, group) -> a packer of masked documents."""

    def make(lengths, seq_len=32, group=1, seed=0):
        return PackedGroups(make_shards(lengths, True, seed), seq_len, 0, seed, group)

    return make


@pytest.fixture
def make_text(make_shards):
    """(lengths, seq_len) -> a packer of plain documents."""

    def make(lengths, seq_len=32, seed=0):
        return PackedText(make_shards(lengths, False, seed), seq_len, 0, seed)

    return make


@pytest.fixture
def whole():
    """A packer's rows as one batch."""
    return lambda packer: make_batch([packer.row(i) for i in range(len(packer))], packer.per_count)
