"""A directory with a tiny model that never ends its turn by itself, and its tokenizer."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def model_dir(tiny_model, chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sprout")
    chat.tokenizer.save(directory)
    model = tiny_model(max_position_embeddings=8192, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[sorted(chat.stop_ids)] = 0  # never the likeliest among 300 random logits
    model.save(directory)
    return directory
