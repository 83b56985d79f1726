"""How far the next-token distributions of two models are apart, in chunks of rows, so that logits never exist whole."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mengya.batch import IGNORE
from mengya.model.language_model import LanguageModel

_ROWS = 512


def _sum(x: Tensor, weight: Tensor, held: Tensor, held_weight: Tensor, temperature: float, reverse: bool) -> Tensor:
    entries = min(len(weight), len(held_weight))  # some models have spare rows
    own = F.log_softmax(F.linear(x, weight[:entries].to(x.dtype)).float() / temperature, -1)
    other = F.log_softmax(F.linear(held, held_weight[:entries].to(held.dtype)).float() / temperature, -1)
    p, q = (own, other) if reverse else (other, own)
    return (p.exp() * (p - q)).sum()


def divergence(
    model: LanguageModel,
    hidden: Tensor,
    teacher: LanguageModel,
    teacher_hidden: Tensor,
    labels: Tensor,
    temperature: float,
    reverse: bool,
) -> Tensor:
    """The Kullback-Leibler divergence of the model's distribution q from the teacher's p, both at `temperature`, summed
    over the positions that have a label; a float32 scalar. Forward: sum p log(p / q); reverse: sum q log(q / p).

    `hidden`, `teacher_hidden` (B, T, C of each); `labels` (B, T). The backward pass computes each chunk again.
    """
    rows = (labels.flatten() != IGNORE).nonzero()[:, 0]
    own, other = hidden.flatten(0, -2)[rows], teacher_hidden.flatten(0, -2)[rows]
    total = own.new_zeros((), dtype=torch.float32)
    for x, held in zip(own.split(_ROWS), other.split(_ROWS), strict=True):
        parts = x, model.output_weight, held, teacher.output_weight.detach(), temperature, reverse
        total = total + (checkpoint(_sum, *parts, use_reentrant=False) if torch.is_grad_enabled() else _sum(*parts))
    return total
