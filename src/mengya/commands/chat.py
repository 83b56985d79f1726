"""mengya chat MODEL_DIR: talk to a model in the terminal."""

import sys
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
    demo: bool = False
    """Without a terminal, answer three questions and end."""


def run(config: Config) -> None:
    from mengya.serve.terminal import answer_questions, chat

    if config.demo and not sys.stdin.isatty():
        answer_questions(config.model, ["你是谁？", "法国的首都是哪里？", "37+45等于多少？"], sys.stdout)
    else:
        chat(config.model, config.sampling, config.system)


COMMAND = Command(Config, run)
