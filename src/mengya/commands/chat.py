"""mengya chat MODEL_DIR: talk to a model in the terminal."""

import dataclasses
from pathlib import Path
from typing import Annotated

from mengya.commands import Command
from mengya.infer.request import Sampling
from mengya.schema import Argument, config


@config
class Config:
    """Talk to a model in the terminal."""

    model: Annotated[Path, Argument("MODEL_DIR")]
    """A model directory."""
    system: str | None = None
    """System prompt."""
    sampling: Sampling = Sampling(temperature=0.3)
    trust_remote_code: bool = False
    """Run the code that comes with the model, if nobody else has its architecture (auto_map)."""
    ask: list[str] = dataclasses.field(default_factory=list)
    """Answer this question first (may be given several times); without a terminal, end after that."""


def run(config: Config) -> None:
    from mengya.serve.terminal import chat

    chat(config.model, config.sampling, config.system, config.ask, trust_remote_code=config.trust_remote_code)


COMMAND = Command(Config, run)
