"""Keeping the experts equally loaded: auxiliary losses, or a selection bias that follows the load."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mengya.batch import IGNORE, Batch, Metric
from mengya.errors import UserError
from mengya.model.language_model import LanguageModel, Routing
from mengya.schema import config

LOAD = "expert_load"
"""The metric (moe layers, experts): how many tokens took each expert."""

Coefficient = Annotated[float, Field(ge=0)]


@config
class Balance:
    """How the experts of a model are kept equally loaded; for models that have some."""

    sequence_loss_coef: Coefficient = 0.01
    """Weight of the balance loss within each row, as in DeepSeekMoE and DeepSeek-V2 and -V3; 1 if balanced."""
    batch_loss_coef: Coefficient = 0.0
    """Weight of the balance loss over a micro-batch, as in Switch Transformers; 1 if balanced."""
    z_loss_coef: Coefficient = 0.001
    """Weight of the squared log-sum-exp of the router's logits, as in ST-MoE: keeps them small."""
    bias_update_rate: Coefficient = 0.0
    """Step of the selection bias after each update, as in DeepSeek-V3, e.g. 0.001; needs norm_topk_prob=true."""


DEFAULT = Balance()


def check(balance: Balance, experts: bool, biased: bool) -> None:
    """ValueError if a model cannot be trained so. `experts`: it has some; `biased`: their selection has a bias."""
    changed = [f.name for f in dataclasses.fields(balance) if getattr(balance, f.name) != f.default]
    if not experts and changed:
        raise ValueError(f"balance.{changed[0]} is set, but the model has no experts; remove it or set num_experts")
    if balance.bias_update_rate and not biased:
        raise ValueError(
            f"balance.bias_update_rate={balance.bias_update_rate} needs norm_topk_prob=true: the format of "
            "unnormalised routing (Qwen2-MoE) has no selection bias; set it to 0 and use balance.sequence_loss_coef"
        )


class RouterLosses(NamedTuple):
    """Sums over the rows of a batch, each weighing what its labelled tokens weigh; means over the layers."""

    sequence: Tensor
    batch: Tensor
    z: Tensor
    load: Tensor
    """(moe layers, experts) tokens."""


def router_losses(routings: list[Routing], batch: Batch) -> RouterLosses:
    """The losses of all MoE layers over the tokens that are not padding.

    With E experts of which each of T tokens takes k, f_i = E / (k T) x how many took expert i, and P_i the mean
    probability of expert i, the balance loss is the sum of f_i P_i: over the tokens of a row (DeepSeekMoE,
    arXiv:2401.06066, eq. 12 to 14; per sequence as in DeepSeek-V3, arXiv:2412.19437, eq. 17 to 20, a sequence being a
    packed row), or over those of the batch (Switch Transformers, arXiv:2101.03961, eq. 4 to 6). The router z-loss is
    the mean of logsumexp(logits) ** 2 (ST-MoE, arXiv:2202.08906, eq. 5).

    A row's mean is multiplied by its labelled tokens, or by its part of Batch.count where that counts pairs: divided by
    the step's count, as any summed loss, it weighs the same however rows are split over micro-batches and ranks. The
    batch's loss is multiplied by Batch.count and does depend on the split: its batch is what one forward pass sees.
    """
    logits = torch.stack([routing.logits for routing in routings])  # (L, B, T, E)
    experts = torch.stack([routing.experts for routing in routings])
    kinds, top_k = logits.shape[-1], experts.shape[-1]
    real = (batch.sequence_ids >= 0).float()[..., None]  # (B, T, 1)
    tokens = real.sum(1)  # (B, 1)
    labelled = (batch.labels != IGNORE).sum(1).float()
    weights = labelled * (batch.count / labelled.sum().clamp(min=1))  # (B,)

    load = (torch.zeros_like(logits).scatter_(-1, experts, 1.0) * real).sum(2)  # (L, B, E)
    probability = (logits.softmax(-1) * real).sum(2)
    z = (logits.logsumexp(-1, keepdim=True).square() * real).sum(2)  # (L, B, 1)

    def balance(load: Tensor, probability: Tensor, tokens: Tensor) -> Tensor:
        return kinds / top_k * (load * probability).sum(-1) / tokens.clamp(min=1).squeeze(-1).square()

    by_row = balance(load, probability, tokens)
    whole = balance(load.sum(1), probability.sum(1), tokens.sum(0))
    return RouterLosses(
        sequence=(by_row.mean(0) * weights).sum(),
        batch=whole.mean() * batch.count,
        z=((z / tokens.clamp(min=1)).squeeze(-1).mean(0) * weights).sum(),
        load=load.detach().sum(1),
    )


def weigh(losses: RouterLosses, layers: int, balance: Balance) -> tuple[Tensor, dict[str, Metric]]:
    """What is added to a summed loss, all layers together (as DeepSeek), and the metrics: means over the layers."""
    total = balance.sequence_loss_coef * losses.sequence + balance.batch_loss_coef * losses.batch
    total = total + balance.z_loss_coef * losses.z
    sums = {"balance_loss": losses.sequence, "batch_balance_loss": losses.batch, "router_z_loss": losses.z}
    sums[LOAD] = losses.load
    return layers * total, {name: Metric(value.detach()) for name, value in sums.items()}


def after_step(model: LanguageModel, balance: Balance) -> Callable[[dict[str, Any]], None] | None:
    """What to call with the metrics of each applied update, if anything. UserError if `balance` does not suit `model`.

    Routing without an auxiliary loss (Wang et al. 2024, arXiv:2408.15664, algorithm 1): experts that took less than
    their share are preferred a little more from now on, the others a little less.
    """
    try:
        check(balance, model.has_experts, bool(model.selection_biases()))
    except ValueError as error:
        raise UserError(str(error)) from error
    if not balance.bias_update_rate:
        return None

    @torch.no_grad()
    def update(metrics: dict[str, Any]) -> None:
        biases = model.selection_biases()  # each time again: an engine may have moved them
        for bias, load in zip(biases, torch.tensor(metrics[LOAD], dtype=torch.float64), strict=True):
            step = balance.bias_update_rate * (load.mean() - load).sign()
            bias += step.to(bias)

    return update
