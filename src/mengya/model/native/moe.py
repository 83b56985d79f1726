"""Mixture of experts: a router, fine-grained routed experts and shared ones, as in DeepSeekMoE (arXiv:2401.06066).

The (token, expert) pairs are sorted once, so that each product is one grouped matrix product over all experts; no token
is dropped, and no scatter-add adds in an arbitrary order, so that runs repeat bit by bit.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mengya.model.language_model import Routing
from mengya.model.native.config import ModelConfig
from mengya.model.native.float_products import multiply, uses_kernel
from mengya.model.native.linear import swiglu_groups, uses_kernels


def _grouped(*tensors: Tensor) -> bool:
    """Whether `torch.nn.functional.grouped_mm` is to multiply these: not what our kernel does, and its rows must be
    multiples of 16 bytes."""
    kinds = (torch.bfloat16, torch.float16, torch.float32)
    own = uses_kernel(tensors[0].device.type, tensors[0].dtype)
    return not own and all(t.dtype in kinds and t.shape[-1] * t.element_size() % 16 == 0 for t in tensors)


@torch.library.custom_op("mengya::grouped_product", mutates_args=())
def _grouped_product(x: Tensor, weight: Tensor, ends: Tensor, transposed: bool) -> Tensor:
    """Each group of rows (M, I) times its matrix, cast to their type: (M, O).

    weight (E, I, O), or (E, O, I) if `transposed`.
    """
    weight = weight.to(x.dtype)
    weight = weight.mT if transposed else weight
    if _grouped(x, weight, weight.mT):
        return F.grouped_mm(x.contiguous(), weight, offs=ends)
    out, cuts = x.new_empty(len(x), weight.shape[2]), ends[:-1].tolist()
    for rows, matrix, to in zip(x.tensor_split(cuts), weight, out.tensor_split(cuts), strict=True):
        multiply(rows, matrix, to)
    return out


@_grouped_product.register_fake
def _grouped_product_output(x: Tensor, weight: Tensor, ends: Tensor, transposed: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1 if transposed else 2])


@torch.library.custom_op("mengya::grouped_outer", mutates_args=())
def _grouped_outer(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """grad (M, O) and x (M, I) -> the sum over each group's rows of their outer products, (E, O, I)."""
    if _grouped(grad, x):
        return F.grouped_mm(grad.contiguous().T, x.contiguous(), offs=ends)
    out, cuts = x.new_empty(len(ends), grad.shape[1], x.shape[1]), ends[:-1].tolist()
    for left, right, to in zip(grad.tensor_split(cuts), x.tensor_split(cuts), out, strict=True):
        multiply(left.T, right, to)
    return out


@_grouped_outer.register_fake
def _(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(len(ends), grad.shape[1], x.shape[1])


class _GroupedLinear(torch.autograd.Function):
    """Each group of rows times its own matrix, cast to their type: (M, I), (E, O, I) -> (M, O).

    Group e is the rows ends[e - 1] .. ends[e] - 1; `ends` (E,) int32, the last one M. Empty groups are fine.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ends)
        return torch.ops.mengya.grouped_product(x, weight, ends, True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight, ends = ctx.saved_tensors
        grad_x = torch.ops.mengya.grouped_product(grad, weight, ends, False) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None
        return grad_x, torch.ops.mengya.grouped_outer(grad, x, ends).to(weight.dtype), None


grouped_linear = _GroupedLinear.apply


def _rearranged(x: Tensor, order: Tensor, places: Tensor, copies: int, back: bool) -> Tensor:
    if not back:
        return x[order // copies if copies > 1 else order]
    x = x[places]
    return x.unflatten(0, (-1, copies)).sum(1) if copies > 1 else x


class _Rearrange(torch.autograd.Function):
    """Rows of x (N, ...) in the order of the pairs, (N * copies, ...); pair p belongs to row p // copies.

    `order` (M,) lists the pairs as they are sorted, `places` is its inverse. `back`: the transpose, the sum of each
    row's copies. Both ways gather, as forward and as backward pass; autograd would add into rows in any order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, places: Tensor, copies: int, back: bool) -> Tensor:
        ctx.save_for_backward(order, places)
        ctx.copies, ctx.back = copies, back
        return _rearranged(x, order, places, copies, back)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        order, places = ctx.saved_tensors
        return _rearranged(grad, order, places, ctx.copies, not ctx.back), None, None, None, None


class Statics(nn.Module):
    """What training sets without a gradient."""

    e_score_correction_bias: Tensor

    def __init__(self, experts: int):
        super().__init__()
        self.register_buffer("e_score_correction_bias", torch.zeros(1, experts))


class Router(nn.Module):
    """Softmax over all experts, of which each token takes the best few.

    A normalised router has a selection bias (DeepSeek-V3, arXiv:2412.19437, section 2.1.2): it is added to the
    probabilities where experts are selected, not where their outputs are weighted.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.top_k, self.normalised = config.num_experts_per_tok, config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        if self.normalised:
            self.moe_statics = Statics(config.num_experts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C) -> logits (N, experts) float32; the selected experts (N, top_k) and their weights, float32."""
        logits = F.linear(x.float(), self.weight.float())
        probabilities = logits.softmax(-1)
        if not self.normalised:
            weights, experts = probabilities.topk(self.top_k, dim=-1)
            return logits, experts, weights
        preference = probabilities.detach() + self.moe_statics.e_score_correction_bias.float()
        experts = preference.topk(self.top_k, dim=-1).indices
        weights = probabilities.gather(-1, experts)
        return logits, experts, weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)


class Experts(nn.Module):
    """The SwiGLU weights of all routed experts, gate and up in one."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        experts, size, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, size))
        self.down_proj = nn.Parameter(torch.empty(experts, size, inner))

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """x (N, C), experts and weights (N, k) -> the weighted sum of the experts' outputs (N, C)."""
        top_k = experts.shape[1]
        gate_up_proj, down_proj = self.gate_up_proj, self.down_proj  # read once: a parametrised one is computed
        chosen, order = experts.flatten().sort(stable=True)
        places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        every = torch.arange(len(down_proj), device=chosen.device)
        ends = torch.searchsorted(chosen, every, right=True, out_int32=True)
        rows = _Rearrange.apply(x, order, places, top_k, False)
        # An expert's output is linear in what enters its last product; its weight is applied there, without a pass.
        scale = _Rearrange.apply(weights.flatten(), order, places, 1, False)
        if uses_kernels(x.device.type, x.dtype, *down_proj.shape[1:]):
            out = swiglu_groups(rows, [gate_up_proj], down_proj, ends, scale)
        else:
            gate, up = grouped_linear(rows, gate_up_proj, ends).chunk(2, dim=-1)
            out = grouped_linear(F.silu(gate) * up * scale[:, None].to(x.dtype), down_proj, ends)
        return _Rearrange.apply(out, order, places, top_k, True)


class MoE(nn.Module):
    """`shared`: what every token passes through as well, ungated."""

    def __init__(self, config: ModelConfig, shared: nn.Module | None):
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = shared

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """(B, T, C) -> (B, T, C) and the router's decisions."""
        flat = x.flatten(0, 1)
        logits, experts, weights = self.gate(flat)
        out = self.experts(flat, experts, weights)
        if self.shared_experts is not None:
            out = out + self.shared_experts(flat)
        return out.view_as(x), Routing(logits.unflatten(0, x.shape[:2]), experts.unflatten(0, x.shape[:2]))
