"""Which weights are trained, by which optimizer, and learning-rate schedules.

AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101. Muon: see muon.py.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mengya.errors import UserError
from mengya.model.language_model import LanguageModel
from mengya.schema import Count, Positive, Share, config
from mengya.train.muon import Muon

Schedule = Callable[[int], float]
"""Step -> factor of the peak learning rate."""
Beta = Annotated[float, Field(ge=0, lt=1)]
Kind = Literal["adamw", "muon"]


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
    """The optimizer and its schedule."""

    name: Kind = "adamw"
    """muon: for the matrices of the blocks; embeddings, the output projection, norms and biases stay with AdamW. Rates
    and decay mean the same for both."""
    lr: Positive = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup: Annotated[float, Field(ge=0)] = 0.02
    """Steps in which the rate rises; below 1, a share of all steps."""
    decay: Share = 0.2
    """Share of all steps in which a wsd schedule falls, after warm-up; cosine falls all the way."""
    min_lr: Share = 0.1
    """Where the schedule ends, as a share of lr."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Of AdamW, as is eps."""
    eps: Positive = 1e-8
    momentum: Beta = 0.95
    """Of Muon, with Nesterov's look ahead."""
    ns_steps: Count = 5
    """Newton-Schulz iterations of Muon's step; fewer are faster and less exact."""
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


def parameter_groups(model: LanguageModel, optim: Optim, kind: Kind | None = None) -> list[dict[str, Any]]:
    """The trained weights as torch's optimizers take them: tables of `params`, `lr`, `initial_lr` (both the peak) and
    `weight_decay`.

    `kind`: only those that this optimizer trains. Decay is on matrices only: norms and biases have none, unless a group
    says so. UserError for a group that fits none.
    """
    trained = _trained(model)
    _check_patterns("optim.groups", (group.pattern for group in optim.groups), list(trained))
    kinds = _kinds(model, optim)
    found: dict[tuple[float, float], list] = {(optim.lr, optim.weight_decay): [], (optim.lr, 0.0): []}
    for name, parameter in trained.items():
        if kind not in (None, kinds[parameter]):
            continue
        own = next((g for g in optim.groups if fnmatchcase(name, g.pattern)), ParameterGroup(pattern=name))
        rate, decay = own.lr, own.weight_decay
        if rate is None:
            rate = optim.lr
        if decay is None:
            decay = optim.weight_decay if parameter.ndim >= 2 else 0.0
        found.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": p, "lr": rate, "initial_lr": rate, "weight_decay": decay} for (rate, decay), p in found.items() if p
    ]


def _kinds(model: LanguageModel, optim: Optim) -> dict[Tensor, Kind]:
    """The optimizer of each trained weight."""
    inner = {parameter for block in model.blocks() for parameter in block.parameters() if parameter.ndim >= 2}
    return {p: "muon" if optim.name == "muon" and p in inner else "adamw" for p in _trained(model).values()}


def make_optimizers(model: LanguageModel, optim: Optim) -> list[torch.optim.Optimizer]:
    """Those that train the model together, with the state of before the first step, into which a checkpoint is read."""
    adamw, muon = (parameter_groups(model, optim, kind) for kind in ("adamw", "muon"))
    found: list[torch.optim.Optimizer] = []
    if adamw:
        found.append(torch.optim.AdamW(adamw, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True))
    if muon:
        dtype = model.compute_dtype or torch.float32
        found.append(Muon(muon, optim.lr, optim.weight_decay, optim.momentum, optim.ns_steps, dtype))
    for optimizer in found:
        for group in optimizer.param_groups:
            optimizer.state.update((p, first_state(p, isinstance(optimizer, Muon))) for p in group["params"])
    return found


def first_state(parameter: Tensor, muon: bool = False) -> dict[str, Tensor]:
    """An optimizer's state of a parameter before the first step."""
    if muon:
        return {"momentum_buffer": torch.zeros_like(parameter, requires_grad=False)}
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, **{n: torch.zeros_like(parameter, requires_grad=False) for n in ("exp_avg", "exp_avg_sq")}}


def warmup_steps(optim: Optim, steps: int) -> int:
    """At least 1, because the rate of a step without a warm-up is the peak."""
    return max(1, round(optim.warmup if optim.warmup >= 1 else optim.warmup * steps))


def make_schedule(optim: Optim, steps: int) -> Schedule:
    """`schedule(step)` for steps 0 .. steps - 1, in units of the peak learning rate.

    `cosine`: linear warm-up, then half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983). `wsd`: warm-up,
    constant, then linear decay (warmup-stable-decay, Hu et al. 2024, arXiv:2404.06395).
    """
    rise = warmup_steps(optim, steps)
    fall = max(1, min(round(optim.decay * steps), steps - rise))  # not before the peak
    floor = optim.min_lr

    def schedule(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if optim.schedule == "wsd":
            return 1 - (1 - floor) * max(0.0, (step + 1 - (steps - fall)) / fall)
        progress = (step + 1 - rise) / max(1, steps - rise)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return schedule
