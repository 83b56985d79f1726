"""`mengya plan`: what a recipe will need. Each stage estimates itself; here the estimates are wired and printed."""

import json
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from mengya import runtime
from mengya.errors import UserError
from mengya.metrics import console, format_count, format_seconds, say
from mengya.recipe import Recipe, StageSpec
from mengya.stage import Estimate, Promise, Sources, Training

COLUMNS = ("stage", "parameters", "tokens", "steps", "FLOPs", "tok/s", "memory", "disk", "time")


def print_plan(recipe: Recipe, root: Path) -> None:
    """Measure and print; writes nothing."""
    say(f"measuring a few steps on {runtime.describe_machine()} …")
    estimates = estimate(recipe, root)
    table = Table(title=f"plan of {recipe.name}", box=SIMPLE, show_edge=False, padding=0)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for name, found in estimates.items():
        training = _cells(found.training) if found.training else [""] * 6
        time = format_seconds(found.seconds) if _measured(found) else "?"
        table.add_row(name, *training, f"{format_count(found.disk)}B", time)
    console.print(table)
    for name, found in estimates.items():
        if found.training and found.training.on_gpus:
            say(f"{name} on GPUs, about: {_on_gpus(found.training)}")
    seconds, disk = (sum(getattr(e, field) for e in estimates.values()) for field in ("seconds", "disk"))
    known = all(_measured(found) for found in estimates.values())
    say(f"in all about {format_seconds(seconds) if known else '?'}, {format_count(disk)}B of disk")
    print(json.dumps({"seconds": round(seconds, 1) if known else None, "disk_bytes": int(disk)}))


def _measured(found: Estimate) -> bool:
    """Whether its time is known."""
    return found.training is None or found.training.tokens_per_second is not None


def estimate(recipe: Recipe, root: Path) -> dict[str, Estimate]:
    """By the name of the stage. UserError names the stage that cannot run so."""
    found: dict[str, Estimate] = {}
    for spec in recipe.stages:
        try:
            found[spec.name] = spec.stage.estimate(spec.config, _sources(spec, found, root), spec.promise or Promise())
        except UserError as error:
            raise UserError(f"{spec.name}: {error}") from error
    return found


def _sources(spec: StageSpec, above: dict[str, Estimate], root: Path) -> Sources:
    return {field: [_source(value, above, root) for value in values] for field, values in spec.references.items()}


def _source(value: str, above: dict[str, Estimate], root: Path) -> Estimate | Path:
    """The path if it is there, so that sizes are exact; else what the stage above says of it."""
    if not value.startswith("@"):
        return Path(value).expanduser()
    if (root / value[1:]).exists():
        return root / value[1:]
    target, _, inside = value[1:].partition("/")
    return above[target].files.get(inside, Estimate()) if inside else above[target]


def _cells(training: Training) -> list[str]:
    parameters = format_count(training.parameters)
    if training.active_parameters < training.parameters:
        parameters += f"/{format_count(training.active_parameters)}"
    counts = [format_count(training.tokens), str(training.steps), format_count(training.flops)]
    memory = "?" if training.memory is None else f"{format_count(training.memory)}B"
    speed = "?" if training.tokens_per_second is None else format_count(training.tokens_per_second)
    return [parameters, *counts, speed, memory]


def _on_gpus(training: Training) -> str:
    sizes = {gpus: f"{format_count(size)}B" for gpus, size in training.on_gpus.items()}
    if len(set(sizes.values())) == 1:
        return f"{next(iter(sizes.values()))} on each, however many"
    return ", ".join(f"{size} with {gpus}" for gpus, size in sizes.items())
