"""Objectives: pure functions `(model, batch) -> Loss`. Hyperparameters are bound by closures."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mengya.batch import IGNORE, Batch, Loss, Metric
from mengya.model.divergence import divergence
from mengya.model.language_model import LanguageModel, Routing
from mengya.train.balance import DEFAULT, Balance, router_losses, weigh

Objective = Callable[[LanguageModel, Batch], Loss]


def _hidden(model: LanguageModel, batch: Batch) -> tuple[Tensor, list[Routing]]:
    return model.hidden(input_ids=batch.input_ids, position_ids=batch.position_ids, starts=batch.starts)


def _balanced(loss: Loss, routings: list[Routing], batch: Batch, balance: Balance) -> Loss:
    """With what keeps the experts equally loaded; held-out losses, measured without gradients, are without it."""
    if not routings or not torch.is_grad_enabled():
        return loss
    extra, metrics = weigh(router_losses(routings, batch), len(routings), balance)
    return Loss(loss.total + extra, {**loss.metrics, **metrics})


def language_modeling(balance: Balance = DEFAULT) -> Objective:
    """Cross-entropy of the labelled tokens: pretraining and supervised fine-tuning alike."""

    def objective(model: LanguageModel, batch: Batch) -> Loss:
        hidden, routings = _hidden(model, batch)
        return _balanced(Loss(model.loss(hidden, batch.labels), {}), routings, batch, balance)

    return objective


def distillation(
    teacher: LanguageModel, share: float, temperature: float, reverse: bool, balance: Balance = DEFAULT
) -> Objective:
    """Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531): `share` of the loss is the divergence from the
    frozen teacher's distributions, times temperature squared, so that gradients keep their size; the rest is
    language_modeling. Reverse: as MiniLLM (Gu et al. 2023, arXiv:2306.08543), on given text.

    Held-out losses, measured without gradients, are those of language_modeling.
    """

    def objective(model: LanguageModel, batch: Batch) -> Loss:
        hidden, routings = _hidden(model, batch)
        loss = model.loss(hidden, batch.labels)
        if not torch.is_grad_enabled():
            return Loss(loss, {})
        with torch.no_grad():
            held = _hidden(teacher, batch)[0]
        apart = divergence(model, hidden, teacher, held, batch.labels, temperature, reverse)
        metrics = {"divergence": Metric(apart.detach()), "cross_entropy": Metric(loss.detach())}
        total = (1 - share) * loss + share * temperature**2 * apart
        return _balanced(Loss(total, metrics), routings, batch, balance)

    return objective


def token_log_probs(model: LanguageModel, batch: Batch) -> tuple[Tensor, list[Routing]]:
    """(B, T) log-probability of each labelled token, 0 elsewhere; the decisions of every router."""
    hidden, routings = _hidden(model, batch)
    return model.log_probs(hidden, batch.labels), routings


def by_sequence(log_p: Tensor, batch: Batch) -> Tensor:
    """(sequences,) sums of (B, T) over each sequence."""
    # All else goes to one more slot. The sum is a product with a 0/1 matrix: unlike scatter-add, its order is fixed.
    slots = F.one_hot(batch.sequence_ids.remainder(batch.sequences + 1).flatten(), batch.sequences + 1)
    return (log_p.flatten() @ slots.to(log_p.dtype))[: batch.sequences]


def _text_loss(log_p: Tensor, batch: Batch) -> Tensor:
    """Of text among pairs: the sum over its rows of a row's mean negative log-likelihood."""
    text = (batch.sequence_ids < 0) & (batch.labels != IGNORE)
    return -((log_p * text).sum(1) / text.sum(1).clamp(min=1)).sum()


def dpo(beta: float, reference: LanguageModel, balance: Balance = DEFAULT) -> Objective:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290), the sigmoid loss.

    Sequences 2p and 2p + 1 of a batch are the chosen and the rejected completion of pair p. `reference` is frozen. It
    does not run under no_grad, where models may round otherwise: equal models must have margins of exactly 0. A row of
    text adds its mean negative log-likelihood, and weighs as much as a pair.
    """

    def objective(model: LanguageModel, batch: Batch) -> Loss:
        log_p, routings = token_log_probs(model, batch)
        held = token_log_probs(reference, batch)[0].detach()
        rewards = beta * (by_sequence(log_p, batch) - by_sequence(held, batch))
        chosen, rejected = rewards[0::2], rewards[1::2]
        margins = chosen - rejected
        sums = {
            "accuracy": (margins > 0).float().sum(),
            "margin": margins.sum(),
            "reward_chosen": chosen.sum(),
            "reward_rejected": rejected.sum(),
        }
        metrics = {name: Metric(value.detach(), len(margins)) for name, value in sums.items()}
        total = -F.logsigmoid(margins).sum() + _text_loss(log_p, batch)
        return _balanced(Loss(total, metrics), routings, batch, balance)

    return objective
