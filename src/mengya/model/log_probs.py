"""The output projection and its cross-entropy together, in chunks of rows, so that logits never exist whole.

The gradient is written during the forward pass, while a chunk's logits are still in cache; as in Cut Cross-Entropy
(Wijmans et al. 2024, arXiv:2411.09009) and Liger Kernel (Hsu et al. 2024, arXiv:2410.10989).
"""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mengya.batch import IGNORE
from mengya.model import compiling
from mengya.model.native.float_products import multiply
from mengya.model.native.linear import output_gradient, output_projection

UNIT = 256
"""The number of rows is a multiple of this, because a CPU's library compiles a product for every number it meets."""


def _chunks(rows: int, entries: int) -> Iterator[slice]:
    """The rows whose logits exist at a time. Products of few rows are badly divided among a CPU's threads."""
    size = 2048 if entries <= 16384 else 1024 if entries <= 65536 else UNIT
    return (slice(begin, min(begin + size, rows)) for begin in range(0, rows, size))


def _normalise(logits: Tensor, labels: Tensor) -> Tensor:
    """Turn logits (N, V) in place into probabilities, into zeros where IGNORE; returns the log-sum-exp (N,) float32."""
    wide = logits.float()
    lse = wide.logsumexp(-1)
    shift = torch.where(labels == IGNORE, torch.inf, lse)
    logits.copy_((wide - shift[:, None]).exp())
    return lse


@functools.cache
def _compiled_normalise() -> Callable[[Tensor, Tensor], Tensor]:
    return compiling.compiled(_normalise)


def _at_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row's label stands among its logits; anywhere if IGNORE."""
    return torch.arange(len(labels), device=labels.device), labels.clamp(min=0)


def _loss_and_gradient(logits: Tensor, labels: Tensor, compiled: bool) -> tuple[Tensor, Tensor]:
    """The summed negative log-likelihood, and its gradient by the logits in their own type and place.

    The labels' entries are read before and written after the pass over all of them, which then compares no indices.
    """
    at = _at_labels(labels)
    picked = logits[at].float()
    if compiled:
        for tensor in (logits, labels):
            torch._dynamo.mark_dynamic(tensor, 0)
    lse = (_compiled_normalise() if compiled else _normalise)(logits, labels)
    log_p = torch.where(labels == IGNORE, 0.0, picked - lse)
    logits[at] = log_p.expm1().to(logits.dtype)
    return -log_p.sum(), logits


def _supervised(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that have a label, filled up to a multiple of UNIT, with their labels; and where they came from."""
    rows = (labels != IGNORE).nonzero()[:, 0]
    spare = -len(rows) % UNIT
    if len(rows) == len(hidden) and not spare:
        return hidden, labels, rows
    filled = torch.nn.functional.pad(rows, (0, spare))
    targets = labels[filled]
    if spare:
        targets[-spare:] = IGNORE
    return hidden[filled], targets, rows


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
        total = torch.zeros((), device=hidden.device)
        grad_x = torch.empty_like(x)
        grad_w = None
        for part in _chunks(len(x), len(w)):
            loss, gradient = _loss_and_gradient(output_projection(x[part], w), y[part], compiled)
            total += loss
            multiply(gradient, w, grad_x[part])
            if ctx.needs_input_grad[1]:  # a frozen projection gets no gradient, which would be as large as itself
                more = output_gradient(gradient, x[part])
                grad_w = more.float() if grad_w is None else grad_w.add_(more)
        if grad_w is None and ctx.needs_input_grad[1]:
            grad_w = torch.zeros_like(weight, dtype=torch.float32)
        grad_hidden = _placed(grad_x, rows, len(hidden))
        ctx.save_for_backward(grad_hidden, grad_w)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        grad_hidden, grad_w = ctx.saved_tensors
        if grad_w is not None:  # in place: autograd reports a second backward pass
            grad_w = grad_w.mul_(grad_output).to(ctx.weight_dtype)
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
        found = torch.empty(len(x), device=hidden.device)
        for part in _chunks(len(x), len(w)):
            logits = output_projection(x[part], w)
            lse[part] = logits.float().logsumexp(-1)
            found[part] = torch.where(y[part] == IGNORE, 0.0, logits[_at_labels(y[part])].float() - lse[part])
        log_p[rows] = found[: len(rows)]
        ctx.save_for_backward(x, weight, y, lse, rows)
        ctx.size = len(hidden)
        return log_p

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        x, weight, y, lse, rows = ctx.saved_tensors
        w = weight.to(x.dtype)
        upstream = torch.zeros(len(x), device=x.device)
        upstream[: len(rows)] = grad_output[rows]
        grad_x = torch.empty_like(x)
        grad_w = torch.zeros_like(w, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part in _chunks(len(x), len(w)):
            gradient = (output_projection(x[part], w).float() - lse[part, None]).exp().neg()
            gradient[_at_labels(y[part])] += 1
            gradient = (gradient * upstream[part, None]).to(x.dtype)
            multiply(gradient, w, grad_x[part])
            if grad_w is not None:
                grad_w += output_gradient(gradient, x[part])
        return _placed(grad_x, rows, ctx.size), None if grad_w is None else grad_w.to(weight.dtype), None


def token_log_probs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """(B, T) float32 log p(labels[t]); 0 where IGNORE. The backward pass computes each chunk's logits again."""
    flat = _TokenLogProbs.apply(hidden.reshape(-1, hidden.shape[-1]), weight, labels.reshape(-1))
    return flat.view(labels.shape)
