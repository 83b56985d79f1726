"""A tiny model of each family."""

import pytest

from mengya.model.native.transformer import CausalLM


@pytest.fixture(scope="session")
def model(tiny_model) -> CausalLM:
    return tiny_model()


@pytest.fixture(scope="session")
def qwen(tiny_model) -> CausalLM:
    return tiny_model(qk_norm=True)
