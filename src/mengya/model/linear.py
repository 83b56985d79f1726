"""Linear layers over float32 weights and activations of another type, and the gradient of their weights.

The forward product and the input's gradient are PyTorch's. The weight's gradient sums down the rows of both factors,
which CPU libraries do at half their speed and round to the activations' type; on CPUs with AMX it goes to the kernel of
kernels/weight_gradient.cpp, which writes float32.
"""

import ctypes
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mengya.model.kernels import (
    Factor,
    GateProblem,
    ProductsProblem,
    WeightGradientProblem,
    products_library,
    swiglu_library,
    weight_gradient_library,
)


@torch.compiler.assume_constant_result
def served(device_type: str, dtype: torch.dtype, *sizes: int) -> bool:
    """Whether the kernels serve tensors of this kind. The first call builds them."""
    right = device_type == "cpu" and dtype == torch.bfloat16 and all(size % 32 == 0 for size in sizes)
    return right and None not in (weight_gradient_library(), swiglu_library(), products_library())


def project(x: Tensor, *layers: nn.Linear) -> list[Tensor]:
    """The outputs of linear layers that share their input.

    While training they are one matrix product: the weights are cast anyway, and the concatenation rides along. Without
    gradients the weights already have the right type, and copying them would double the traffic of every token.
    """
    if not torch.is_grad_enabled():
        return [F.linear(x, m.weight.to(x.dtype), None if m.bias is None else m.bias.to(x.dtype)) for m in layers]
    weights, sizes = [m.weight for m in layers], [m.out_features for m in layers]
    if served(x.device.type, x.dtype, x.shape[-1], *sizes):
        out = _Product.apply(x, *weights)
    else:
        out = F.linear(x, torch.cat(weights).to(x.dtype))
    if layers[0].bias is not None:
        out = out + torch.cat([m.bias for m in layers]).to(x.dtype)
    return list(out.split(sizes, dim=-1))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, *weights: Tensor) -> Tensor:
        weight = torch.cat(weights).to(x.dtype)
        ctx.save_for_backward(x, weight)
        ctx.sizes = [len(w) for w in weights]
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        x, weight = ctx.saved_tensors
        grad_x = grad_out @ weight if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return grad_x, *(None for _ in ctx.sizes)
        flat = grad_out.reshape(-1, grad_out.shape[-1]), x.reshape(-1, x.shape[-1])
        return grad_x, *(g[0] for g in torch.ops.mengya.weight_gradient(*flat, ctx.sizes, None))


@torch.library.custom_op("mengya::weight_gradient", mutates_args=())
def weight_gradient(grad_y: Tensor, x: Tensor, sizes: list[int], ends: Tensor | None) -> list[Tensor]:
    """Per layer, (groups, size, x's width) float32: the sum over the group's rows of grad_y[:, its columns]^T x.

    grad_y (T, sum of sizes), x (T, K), both bf16, sizes and K multiples of 32, at most 3 sizes. ends (groups,) int32:
    the end row of each group, ascending to T; None: one group. The same bits for every number of threads.
    """
    grad_y, x = (t if t.stride(-1) == 1 else t.contiguous() for t in (grad_y, x))
    grads = _empty_gradients(grad_y, x, sizes, ends)
    problem = WeightGradientProblem(
        tokens=len(x), groups=1 if ends is None else len(ends), parts=len(sizes), threads=torch.get_num_threads(),
        ends=None if ends is None else ends.data_ptr(), x=Factor.of(x),
    )  # fmt: skip
    for index, (part, grad) in enumerate(zip(grad_y.split(sizes, dim=1), grads, strict=True)):
        problem.grad_y[index], problem.grad_weight[index] = Factor.of(part), grad.data_ptr()
    library = weight_gradient_library()
    assert library is not None, "called without asking whether it serves"
    library.weight_gradient(ctypes.byref(problem))
    return grads


@weight_gradient.register_fake
def _empty_gradients(grad_y: Tensor, x: Tensor, sizes: list[int], ends: Tensor | None) -> list[Tensor]:
    groups = 1 if ends is None else len(ends)
    return [x.new_empty((groups, size, x.shape[1]), dtype=torch.float32) for size in sizes]


def multiply_groups(x: Tensor, weight: Tensor, ends: Tensor, transposed: bool, out: Tensor) -> None:
    """Write to `out` (M, O) each group of rows of x (M, I) times its matrix.

    weight (groups, I, O), or (groups, O, I) if `transposed`, bf16 or float32; x and out bf16; all contiguous, I and O
    multiples of 32. ends (groups,) int32: the end row of each group, the last M.
    """
    outer, inner = weight.shape[1:] if transposed else weight.shape[:0:-1]
    problem = ProductsProblem(
        groups=len(ends), inner=inner, outer=outer, threads=torch.get_num_threads(),
        transposed=transposed, wide_weights=weight.dtype == torch.float32,
        ends=ends.data_ptr(), rows=x.data_ptr(), weight=weight.data_ptr(), to=out.data_ptr(),
    )  # fmt: skip
    library = products_library()
    assert library is not None, "called without asking whether it serves"
    library.grouped_product(ctypes.byref(problem))


_CHUNK = 1024
"""Rows of SwiGLU at a time: what a chunk's products write is still in cache when it is read."""


def swiglu(x: Tensor, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> Tensor:
    """down(silu(gate(x)) * up(x)), as Shazeer 2020 (arXiv:2002.05202)."""
    sizes = x.shape[-1], gate.out_features, down.out_features
    if torch.is_grad_enabled() and gate.bias is None and served(x.device.type, x.dtype, *sizes):
        out, _ = torch.ops.mengya.swiglu(x.flatten(0, -2), gate.weight, up.weight, down.weight)
        return out.view(*x.shape[:-1], -1)
    opened, raised = project(x, gate, up)
    return project(F.silu(opened) * raised, down)[0]


def _gate(function: str, gate_up: Tensor, h: Tensor, grad_h: Tensor | None = None, grad: Tensor | None = None) -> None:
    """Call a pass of swiglu.cpp on contiguous rows."""
    pointers = {"gate_up": gate_up, "h": h, "grad_h": grad_h, "grad_gate_up": grad}
    library = swiglu_library()
    assert library is not None, "called without asking whether it serves"
    addresses = {name: t.data_ptr() for name, t in pointers.items() if t is not None}
    problem = GateProblem(rows=len(h), size=h.shape[1], threads=torch.get_num_threads(), **addresses)
    library[function](ctypes.byref(problem))


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(begin, begin + _CHUNK) for begin in range(0, rows, _CHUNK))


@torch.library.custom_op("mengya::swiglu", mutates_args=())
def _swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """x (T, C) -> output (T, C) and what the backward pass needs besides: gate and up side by side (T, 2 * size)."""
    out, gate_up = _swiglu_outputs(x, gate, up, down)
    rising, falling = torch.cat([gate, up]).to(x.dtype).T, down.to(x.dtype).T
    h = x.new_empty(len(x), len(gate))
    for part in _chunks(len(x)):
        torch.mm(x[part], rising, out=gate_up[part])
        _gate("swiglu_forward", gate_up[part], h[part])
    torch.mm(h, falling, out=out)
    return out, gate_up


@_swiglu.register_fake
def _swiglu_outputs(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), len(down)), x.new_empty(len(x), 2 * len(gate))


@torch.library.custom_op("mengya::swiglu_backward", mutates_args=())
def _swiglu_backward(
    grad_out: Tensor, x: Tensor, gate_up: Tensor, gate: Tensor, up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rising, falling = torch.cat([gate, up]).to(x.dtype), down.to(x.dtype)
    grad_out, grad_x = grad_out.contiguous(), torch.empty_like(x)
    grad, h = torch.empty_like(gate_up), x.new_empty(len(x), len(gate))
    grad_h = x.new_empty(min(_CHUNK, len(x)), len(gate))
    for part in _chunks(len(x)):
        rows = len(x[part])
        torch.mm(grad_out[part], falling, out=grad_h[:rows])
        _gate("swiglu_backward", gate_up[part], h[part], grad_h[:rows], grad[part])
    torch.mm(grad, rising, out=grad_x)
    grad_gate, grad_up = weight_gradient(grad, x, [len(gate), len(up)], None)
    (grad_down,) = weight_gradient(grad_out, h, [len(down)], None)
    return grad_x, grad_gate[0], grad_up[0], grad_down[0]


@_swiglu_backward.register_fake
def _swiglu_gradients(
    grad_out: Tensor, x: Tensor, gate_up: Tensor, gate: Tensor, up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_gate, grad_up, grad_down = (torch.empty_like(w, dtype=torch.float32) for w in (gate, up, down))
    return torch.empty_like(x), grad_gate, grad_up, grad_down


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, gate, up, down = inputs
    ctx.save_for_backward(x, output[1], gate, up, down)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad_out: Tensor, _grad_gate_up: Tensor | None):
    return torch.ops.mengya.swiglu_backward(grad_out, *ctx.saved_tensors)


_swiglu.register_autograd(_differentiate, setup_context=_save)
