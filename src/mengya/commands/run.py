"""mengya run RECIPE: fill an output directory, stage by stage."""

from pathlib import Path

from mengya.commands import Command, plan
from mengya.schema import config


@config
class Config(plan.Config):
    """Run a recipe; the same command again goes on where it stopped."""

    until: str | None = None
    """Stop after this stage."""


def run(config: Config) -> None:
    from mengya import ranks
    from mengya.recipe import load_recipe
    from mengya.runner import run_recipe

    with ranks.group():
        out = config.out or Path("runs") / config.recipe.stem
        run_recipe(load_recipe(config.recipe, config.overrides, out=out, until=config.until), out, config.until)


COMMAND = Command(Config, run, resumes=True)
