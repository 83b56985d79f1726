"""A directory with a tiny model that never ends its turn by itself, and its tokenizer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mengya.model.config import ModelConfig
from mengya.model.load import save_model
from mengya.model.transformer import CausalLM
from mengya.text.tokenizer import train_tokenizer

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
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sprout")
    tokenizer = train_tokenizer(TEXT, vocab_size=300, max_token_length=12)
    tokenizer.save(directory)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        initializer_range=0.4,
    )
    model = CausalLM(config)
    model.initialize(torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.lm_head.weight[sorted(tokenizer.stop_ids)] = 0  # never the likeliest among 300 random logits
    save_model(model, directory)
    return directory
