"""Muon for matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982).

The update is that of `torch.optim.Muon` with adjust_lr_fn = "match_rms_adamw". Unlike it, matrices of one shape are
orthogonalised together, in a type that the hardware is fast in, and they may be stacked (experts) or divided (FSDP2).
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from mengya.model.native.float_products import multiply

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_AT_ONCE = 1 << 25
"""Numbers that are orthogonalised together, at least one matrix: what it needs besides is several times as large."""


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """U V^T of the singular value decomposition U S V^T of each (..., M, N), roughly: singular values of 0.7 to 1.2.

    By Newton-Schulz iterations in the type of `matrices`; few steps leave small singular values smaller. None may be
    above 1 at first: the norm of X X^T is nearer to the largest one's square than that of X is to the largest, which
    spares more than one iteration.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.flatten(0, -3) if x.ndim > 2 else x[None]
    for step in range(steps):
        gram = multiply(x, x.mT, x.new_empty(*x.shape[:2], x.shape[1]), symmetric=True)
        scale = None if step else gram.flatten(-2).norm(dim=-1).clamp(min=1e-14)[:, None, None]
        gram = gram if scale is None else gram / scale
        factor = multiply(gram, gram, gram.clone(), alpha=c, beta=b, symmetric=True)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        x = multiply(factor if scale is None else factor / scale.sqrt(), x, torch.empty_like(x))
    return (x.mT if tall else x).reshape(matrices.shape)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, with the root mean square of AdamW's, so that its rates carry over."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float,
        ns_steps: int,
        dtype: torch.dtype,
    ):
        """Groups of parameters of two or more dimensions, of which the last two are those of a matrix.

        `dtype`: of the orthogonalisation; parameters and momentum keep theirs.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameters in _alike(p for p in group["params"] if p.grad is not None):
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Of parameters of one shape."""
        whole = torch.stack([self._direction(parameter, group["momentum"]) for parameter in parameters])
        rows, columns = whole.shape[-2:]
        rate = group["lr"] * 0.2 * math.sqrt(max(rows, columns))
        for parameter, update in zip(parameters, orthogonalize(whole, group["ns_steps"]), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            if isinstance(parameter, DTensor):
                update = distribute_tensor(update, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.add_(update.to(parameter.dtype), alpha=-rate)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        """The whole gradient after Nesterov's momentum, also of a parameter that is divided among ranks."""
        gradient, buffer = parameter.grad, self.state[parameter]["momentum_buffer"]
        assert gradient is not None
        buffer.lerp_(gradient, 1 - momentum)
        found = gradient.lerp(buffer, momentum)
        return (found.full_tensor() if isinstance(found, DTensor) else found).to(self._dtype)


def _alike(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Lists of parameters of one shape, each short enough to be orthogonalised at once."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        by_shape.setdefault(parameter.shape, []).append(parameter)
    for shape, found in by_shape.items():
        size = max(1, _AT_ONCE // shape.numel())
        yield from (found[i : i + size] for i in range(0, len(found), size))
