"""mengya chat MODEL: talk to a model in the terminal."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated

from mengya.commands import Command
from mengya.errors import UserError
from mengya.infer.backends.kinds import Kind
from mengya.infer.request import Sampling
from mengya.model.precision import Weights
from mengya.schema import Argument, config


@config
class Config:
    """Talk to a model in the terminal."""

    model: Annotated[str | None, Argument("MODEL")] = None
    """A model directory, that of an adapter, a .gguf file, or the address of an OpenAI-compatible server."""
    base: str | None = None
    """A model directory, which gets the adapter; in place of MODEL."""
    adapter: Path | None = None
    """The directory of an adapter for the model of --base."""
    backend: Kind = "auto"
    """Who computes; auto: what MODEL is decides."""
    weights: Weights = "exact"
    """As what the weights are kept: as they are, or rounded, which is faster. Of our own models on a CPU."""
    system: str | None = None
    """System prompt."""
    sampling: Sampling = Sampling(temperature=0.3)
    single_turn: bool = False
    """Every question begins a new conversation."""
    history: Path | None = None
    """A file that remembers what was typed, for the arrow keys."""
    trust_remote_code: bool = False
    """Run the code that comes with the model, if nobody else has its architecture (auto_map)."""
    options: list[str] = dataclasses.field(default_factory=list)
    """KEY=VALUE of vLLM's engine, such as tensor_parallel_size=2 (may be given several times)."""
    ask: list[str] = dataclasses.field(default_factory=list)
    """Answer this question first (may be given several times); without a terminal, end after that."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.base is None) or (self.adapter is not None and self.base is None):
            raise UserError("give either MODEL, or --base MODEL --adapter DIR")


def run(config: Config) -> None:
    from mengya.infer.backends.opening import open_backend, parse_options
    from mengya.serve.terminal import chat

    backend = open_backend(
        config.model or config.base or "", backend=config.backend, adapter=config.adapter, weights=config.weights,
        trust_remote_code=config.trust_remote_code, running=1, vllm_options=parse_options(config.options),
    )  # fmt: skip
    with contextlib.closing(backend):
        chat(
            backend, config.sampling, config.system, config.ask, single_turn=config.single_turn, history=config.history
        )


COMMAND = Command(Config, run)
