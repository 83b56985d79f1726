"""Which weights are trained, AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), and learning-rate schedules."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from mengya.errors import UserError
from mengya.model.language_model import LanguageModel
from mengya.schema import Positive, Share, config

Schedule = Callable[[int], float]
"""Step -> factor of the peak learning rate."""
Beta = Annotated[float, Field(ge=0, lt=1)]


@config
class ParameterGroup:
    """Weights with a learning rate or a decay of their own."""

    pattern: str
    """Of parameter names, e.g. "*embed_tokens*"; * stands for anything. A name belongs to the first that fits."""
    lr: Positive | None = None
    """Peak learning rate; unset: optim.lr."""
    weight_decay: Share | None = None
    """For vectors, too; unset: optim.weight_decay for matrices, none for vectors."""


@config
class Optim:
    """AdamW and its schedule."""

    lr: Positive = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup: Share = 0.02
    """Share of all steps in which the rate rises."""
    decay: Share = 0.2
    """Share of all steps in which a wsd schedule falls; cosine falls all the way."""
    min_lr: Share = 0.1
    """Where the schedule ends, as a share of lr."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: Share = 0.1
    max_grad_norm: Positive = 1.0
    groups: list[ParameterGroup] = dataclasses.field(default_factory=list)
    """Rates and decay by name, e.g. [{pattern = "*embed_tokens*", lr = 1e-4}]."""


def _check_patterns(key: str, patterns: Iterable[str], names: list[str]) -> None:
    """UserError for a pattern that fits none of the names."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern.strip("*"), names, 3, 0.3)
            raise UserError(
                f"{key}: no trained weight has a name like {pattern!r}; close to it: {', '.join(near or names[:3])}"
            )


def _trained(model: LanguageModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def freeze(model: LanguageModel, patterns: list[str]) -> None:
    """Train no weight whose name fits a pattern. UserError for one that fits none, and if nothing is left."""
    trained = _trained(model)
    _check_patterns("freeze", patterns, list(trained))
    for name, parameter in trained.items():
        parameter.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in patterns))
    if not _trained(model):
        raise UserError(f"freeze={patterns} leaves nothing to train; remove a pattern")


def parameter_groups(model: LanguageModel, optim: Optim) -> list[dict[str, Any]]:
    """The trained weights as torch's optimizers take them: tables of `params`, `lr` (the peak) and `weight_decay`.

    Decay is on matrices only: norms and biases have none, unless a group says so. UserError for a group that fits none.
    """
    trained = _trained(model)
    _check_patterns("optim.groups", (group.pattern for group in optim.groups), list(trained))
    found: dict[tuple[float, float], list] = {(optim.lr, optim.weight_decay): [], (optim.lr, 0.0): []}
    for name, parameter in trained.items():
        own = next((g for g in optim.groups if fnmatchcase(name, g.pattern)), ParameterGroup(pattern=name))
        rate, decay = own.lr, own.weight_decay
        if rate is None:
            rate = optim.lr
        if decay is None:
            decay = optim.weight_decay if parameter.ndim >= 2 else 0.0
        found.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in found.items() if p]


def make_schedule(optim: Optim, steps: int) -> Schedule:
    """`schedule(step)` for steps 0 .. steps - 1, in units of the peak learning rate.

    `cosine`: linear warm-up, then half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983). `wsd`: warm-up,
    constant, then linear decay (warmup-stable-decay, Hu et al. 2024, arXiv:2404.06395).
    """
    rise = max(1, round(optim.warmup * steps))
    fall = max(1, round(optim.decay * steps))
    floor = optim.min_lr

    def schedule(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if optim.schedule == "wsd":
            return 1 - (1 - floor) * max(0.0, (step + 1 - (steps - fall)) / fall)
        progress = (step + 1 - rise) / max(1, steps - rise)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return schedule
