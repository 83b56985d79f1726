"""mengya plan RECIPE: what a run would need."""

import dataclasses
from pathlib import Path
from typing import Annotated

from mengya.commands import Command
from mengya.schema import Argument, config


@config
class Config:
    """Tell what a recipe will need: parameters, FLOPs, memory, disk, time."""

    recipe: Annotated[Path, Argument("RECIPE")]
    """A .toml file."""
    overrides: Annotated[list[str], Argument("stage.key=value")] = dataclasses.field(default_factory=list)
    """Change a value of the recipe."""
    out: Path | None = None
    """Output directory (default: runs/<recipe name>)."""


def run(config: Config) -> None:
    from mengya.plan import print_plan
    from mengya.recipe import load_recipe

    recipe = load_recipe(config.recipe, config.overrides)
    print_plan(recipe, config.out or Path("runs") / recipe.name)


COMMAND = Command(Config, run)
