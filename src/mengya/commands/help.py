"""mengya help [STAGE]: the stages, or the keys of one."""

from typing import Annotated

from mengya.commands import Command
from mengya.schema import Argument, config


@config
class Config:
    """Show the stages, or the keys of one."""

    stage: Annotated[str | None, Argument("STAGE")] = None


def run(config: Config) -> None:
    from mengya.help import stage_help, stages_help

    print(stage_help(config.stage) if config.stage else stages_help())


COMMAND = Command(Config, run)
