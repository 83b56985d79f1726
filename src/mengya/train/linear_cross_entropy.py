"""The output projection and its cross-entropy together, in chunks of rows, so that logits never exist whole.

The gradient is written during the forward pass, while a chunk's logits are still in cache; as in Cut Cross-Entropy
(Wijmans et al. 2024, arXiv:2411.09009) and Liger Kernel (Hsu et al. 2024, arXiv:2410.10989).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mengya.data.batch import IGNORE
from mengya.model.linear import output_gradient, output_projection

UNIT = 256
"""Rows are filled up to a multiple of so many, because a CPU's library compiles a product for every number it meets."""


def _chunks(rows: int, entries: int) -> Iterator[slice]:
    """The rows whose logits exist at a time. Products of few rows are badly divided among a CPU's threads."""
    size = 2048 if entries <= 16384 else 1024
    return (slice(begin, min(begin + size, rows)) for begin in range(0, rows, size))


def _statistics(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, V), labels (N,) -> log p(label) (N,), 0 where IGNORE; log-sum-exp (N,); one-hot labels (N, V).

    The label's logit is picked by a comparison and a sum, not by a gather: that fuses with the other reductions.
    """
    wide = logits.float()
    lse = wide.logsumexp(-1)
    hot = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    picked = torch.where(hot, wide, 0.0).sum(-1)
    return torch.where(labels == IGNORE, 0.0, picked - lse), lse, hot


def _loss_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The summed negative log-likelihood, and its gradient by the logits in their own type."""
    log_p, lse, hot = _statistics(logits, labels)
    gradient = (logits.float() - lse[:, None]).exp() - hot.float()
    return -log_p.sum(), torch.where((labels == IGNORE)[:, None], 0.0, gradient).to(logits.dtype)


_compiled = torch.compile(_loss_and_gradient)


def _compiled_loss_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    for tensor in (logits, labels):
        torch._dynamo.mark_dynamic(tensor, 0)
    return _compiled(logits, labels)


def _supervised(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that have a label, filled up to a multiple of UNIT, with their labels; and where they came from."""
    rows = (labels != IGNORE).nonzero()[:, 0]
    spare = -len(rows) % UNIT
    if len(rows) == len(hidden) and not spare:
        return hidden, labels, rows
    picked = torch.nn.functional.pad(rows, (0, spare))
    kept = labels[picked]
    if spare:
        kept[-spare:] = IGNORE
    return hidden[picked], kept, rows


def _placed(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """The inverse of _supervised: `values` at their rows of (size, C), zeros elsewhere."""
    if len(rows) == size == len(values):
        return values
    out = values.new_zeros(size, values.shape[1])
    out[rows] = values[: len(rows)]
    return out


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, compiled: bool) -> Tensor:
        x, y, rows = _supervised(hidden, labels)
        w = weight.to(hidden.dtype)
        step = _compiled_loss_and_gradient if compiled else _loss_and_gradient
        total = torch.zeros((), device=hidden.device)
        grad_x = torch.empty_like(x)
        grad_w = None
        for part in _chunks(len(x), len(w)):
            loss, gradient = step(output_projection(x[part], w), y[part])
            total += loss
            torch.mm(gradient, w, out=grad_x[part])
            more = output_gradient(gradient, x[part])
            grad_w = more.float() if grad_w is None else grad_w.add_(more)
        if grad_w is None:
            grad_w = torch.zeros_like(weight, dtype=torch.float32)
        grad_hidden = _placed(grad_x, rows, len(hidden))
        ctx.save_for_backward(grad_hidden, grad_w)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        grad_hidden, grad_w = ctx.saved_tensors
        grad_w = grad_w.mul_(grad_output).to(ctx.weight_dtype)  # in place: a second backward pass is told by autograd
        # A float32 scalar keeps its digits and leaves the product in hidden's type; rounded to bfloat16 it would shift
        # every gradient below by the same fraction of a percent.
        return grad_hidden * grad_output, grad_w, None, None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, compiled: bool) -> Tensor:
    """Summed -log p(labels) of the projection `hidden @ weight.T`, float32 scalar.

    `hidden` (..., C), `weight` (V, C) of any float type (products run in hidden's), `labels` (...) with IGNORE.
    """
    return _LinearCrossEntropy.apply(hidden.reshape(-1, hidden.shape[-1]), weight, labels.reshape(-1), compiled)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        x, y, rows = _supervised(hidden, labels)
        w = weight.to(hidden.dtype)
        log_p = torch.zeros(len(hidden), device=hidden.device)
        lse = torch.empty(len(x), device=hidden.device)
        kept = torch.empty(len(x), device=hidden.device)
        for part in _chunks(len(x), len(w)):
            kept[part], lse[part], _ = _statistics(output_projection(x[part], w), y[part])
        log_p[rows] = kept[: len(rows)]
        ctx.save_for_backward(x, weight, y, lse, rows)
        ctx.size = len(hidden)
        return log_p

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        x, weight, y, lse, rows = ctx.saved_tensors
        w = weight.to(x.dtype)
        upstream = torch.zeros(len(x), device=x.device)
        upstream[: len(rows)] = grad_output[rows]
        grad_x, grad_w = torch.empty_like(x), torch.zeros_like(w, dtype=torch.float32)
        columns = torch.arange(len(w), device=x.device)
        for part in _chunks(len(x), len(w)):
            probability = (output_projection(x[part], w).float() - lse[part, None]).exp()
            gradient = ((columns == y[part, None]).float() - probability) * upstream[part, None]
            gradient = gradient.to(x.dtype)
            torch.mm(gradient, w, out=grad_x[part])
            grad_w += output_gradient(gradient, x[part])
        return _placed(grad_x, rows, ctx.size), grad_w.to(weight.dtype), None


def token_log_probs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """(B, T) float32 log p(labels[t]); 0 where IGNORE. The backward pass computes each chunk's logits anew."""
    flat = _TokenLogProbs.apply(hidden.reshape(-1, hidden.shape[-1]), weight, labels.reshape(-1))
    return flat.view(labels.shape)
