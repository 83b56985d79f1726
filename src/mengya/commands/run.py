"""mengya run RECIPE: fill an output directory, stage by stage."""

import dataclasses
from pathlib import Path
from typing import Annotated

from mengya.commands import Command
from mengya.schema import Argument, config


@config
class Config:
    """Run a recipe; the same command again goes on where it stopped."""

    recipe: Annotated[Path, Argument("RECIPE")]
    """A .toml file."""
    overrides: Annotated[list[str], Argument("stage.key=value")] = dataclasses.field(default_factory=list)
    """Change a value of the recipe."""
    out: Path | None = None
    """Output directory (default: runs/<recipe name>)."""
    until: str | None = None
    """Stop after this stage."""


def run(config: Config) -> None:
    from mengya import ranks
    from mengya.recipe import load_recipe
    from mengya.runner import run_recipe

    with ranks.group():
        recipe = load_recipe(config.recipe, config.overrides)
        run_recipe(recipe, config.out or Path("runs") / recipe.name, config.until)


COMMAND = Command(Config, run, resumes=True)
