"""A tiny model of each family, by the kernel and by PyTorch's operations; and answers of a script."""

from collections.abc import Callable, Sequence

import pytest

from mengya.infer import engine as engines
from mengya.infer.engine import Engine
from mengya.infer.generate import generate
from mengya.infer.request import Request, Sampling
from mengya.infer.sampling import Drawn
from mengya.model.native import kernels, steps
from mengya.model.native.transformer import CausalLM
from mengya.text.chat import Chat

Complete = Callable[..., list[list[int]]]


@pytest.fixture(scope="session")
def model(tiny_model) -> CausalLM:
    return tiny_model(num_attention_heads=2, num_key_value_heads=1)


@pytest.fixture(scope="session")
def qwen(tiny_model) -> CausalLM:
    return tiny_model(qk_norm=True, head_dim=16)


@pytest.fixture(params=["kernel", "torch"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute a step."""
    if request.param == "torch":
        monkeypatch.setattr(steps, "why_not", lambda model: "it is told not to")
    elif kernels.library("generation") is None:
        pytest.skip("needs a C++ compiler and AVX2")
    return request.param


@pytest.fixture(scope="session")
def complete(tokenizer) -> Complete:
    """complete(model, prompts, sampling, stop_ids, **settings of the engine) -> the tokens of each answer."""

    def tokens_of(
        model: CausalLM, prompts: Sequence[list[int]], sampling: Sampling, stop_ids: set[int] = frozenset(), **settings
    ) -> list[list[int]]:
        engine = Engine(model, tokenizer, stop_ids, **settings)
        found = generate(engine, [Request(prompt=prompt, sampling=sampling) for prompt in prompts])
        assert engine.pool.free == engine.pool.blocks
        return [list(choice.tokens) for (choice,) in found]

    return tokens_of


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, chat: Chat) -> Callable[[list[int]], None]:
    """Make the engine answer with given tokens, then the end of the turn."""

    def play(tokens: list[int]) -> None:
        rest = iter([*tokens, chat.tokenizer.control_ids["<|im_end|>"]])
        monkeypatch.setattr(engines, "draw", lambda logits, drawers: [Drawn(next(rest)) for _ in drawers])

    return play
