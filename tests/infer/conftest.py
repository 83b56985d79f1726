"""A tiny model of each family with random weights, and a tokenizer for a few Chinese sentences."""

from collections.abc import Iterator

import pytest
import torch

from mengya.model.config import ModelConfig
from mengya.model.transformer import CausalLM
from mengya.text.tokenizer import Tokenizer, train_tokenizer

TEXT = [
    "春天来了，小草从土里钻出来。",
    "你好，我叫萌芽。",
    "12 加 30 等于 42。",
    "Hello, little sprout!\n",
    "熊猫吃竹子。",
] * 3


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only get into each other's way in a model of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT, vocab_size=300, max_token_length=12)


def tiny_model(vocab_size: int, qk_norm: bool = False, context: int = 256) -> CausalLM:
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=context,
        qk_norm=qk_norm,
        initializer_range=0.4,  # far from uniform, so that rounding cannot change the likeliest token
    )
    model = CausalLM(config)
    model.initialize(torch.Generator().manual_seed(1))
    return model.eval()


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> CausalLM:
    return tiny_model(tokenizer.vocab_size)


@pytest.fixture(scope="session")
def qwen(tokenizer: Tokenizer) -> CausalLM:
    return tiny_model(tokenizer.vocab_size, qk_norm=True)
