"""Outputs of layers with all their gradients."""

import torch
from torch import nn


def gradients(function, x: torch.Tensor, modules: list[nn.Linear]) -> list[torch.Tensor]:
    """The output of function(x, *modules), and the gradients of x and all parameters."""
    x = x.clone().requires_grad_()
    for module in modules:
        module.zero_grad()
    out = function(x, *modules)
    out = torch.cat(out, -1) if isinstance(out, list) else out
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype))
    return [out.detach(), x.grad, *(p.grad for module in modules for p in module.parameters())]
