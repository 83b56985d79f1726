"""Matrix products in float32: by our kernel on processors that PyTorch's library was not made for, else by PyTorch."""

import torch
from torch import Tensor

from mengya import processor
from mengya.model.compiling import decision
from mengya.model.native import kernels
from mengya.model.native.kernels import FloatProblem, Side


@decision
def uses_kernel(device_type: str, *dtypes: torch.dtype) -> bool:
    """Whether the kernel multiplies tensors of these types. The first call builds it."""
    here = device_type == "cpu" and set(dtypes) == {torch.float32} and not processor.is_intel()
    return here and kernels.library("float_products") is not None


def multiply(
    a: Tensor, b: Tensor, out: Tensor, alpha: float = 1.0, beta: float = 0.0, symmetric: bool = False
) -> Tensor:
    """out = alpha a b + beta out, outside autograd; `symmetric`: the result is known to be, up to rounding.

    a (M, K), b (K, N) and out (M, N), or several of each (B, …), of one type and device; rows or columns of out are
    contiguous.
    """
    if not uses_kernel(out.device.type, a.dtype, b.dtype, out.dtype):
        return (torch.addmm if out.ndim == 2 else torch.baddbmm)(out, a, b, beta=beta, alpha=alpha, out=out)
    if not a.numel() or not b.numel():
        return out.mul_(beta) if beta else out.zero_()
    if out.stride(-1) != 1 and out.shape[-1] > 1:
        multiply(b.mT, a.mT, out.mT, alpha, beta, symmetric)
        return out
    for left, right, to in [(a, b, out)] if out.ndim == 2 else zip(a, b, out, strict=True):
        _call("product", left, right, to, out.shape[-1], alpha=alpha, beta=beta, symmetric=symmetric)
    return out


def _call(function: str, a: Tensor, b: Tensor, c: Tensor, columns: int, **others: Tensor | float) -> None:
    """Call a function of float_products.cpp; c has the columns of the product, or more."""
    assert a.shape == (len(c), len(b)) and b.shape[1] == columns and a.dtype == b.dtype == c.dtype == torch.float32
    assert c.stride(1) == 1 or c.shape[1] == 1
    # The kernel takes any strides; where neither is 1 it would read a line of memory for every number.
    a, b = (x if 1 in x.stride() else x.contiguous() for x in (a, b))
    problem = FloatProblem(
        rows=len(c), columns=columns, depth=len(b), threads=torch.get_num_threads(), a=Side.of(a), b=Side.of(b),
        c=c.data_ptr(), c_row=c.stride(0), alpha=1.0, beta=0.0,
    )  # fmt: skip
    for name, value in others.items():
        setattr(problem, name, value.data_ptr() if isinstance(value, Tensor) else value)
    kernels.call("float_products", function, problem)


# Weights are lists of matrices (O, C) that stand one below the other: joined here, the joined one is not kept.


def _joined(weights: list[Tensor]) -> Tensor:
    return weights[0] if len(weights) == 1 else torch.cat(weights)


@torch.library.custom_op("mengya::float_outputs", mutates_args=())
def outputs(x: Tensor, weights: list[Tensor]) -> Tensor:
    """x (T, C) times the transposed weights: (T, O)."""
    weight = _joined(weights)
    return multiply(x, weight.T, x.new_empty(len(x), len(weight)))


@outputs.register_fake
def _(x: Tensor, weights: list[Tensor]) -> Tensor:
    return x.new_empty(len(x), sum(map(len, weights)))


@torch.library.custom_op("mengya::float_input_gradient", mutates_args=())
def input_gradient(grad: Tensor, weights: list[Tensor]) -> Tensor:
    """grad (T, O) times the weights: (T, C)."""
    return multiply(grad, _joined(weights), grad.new_empty(len(grad), weights[0].shape[1]))


@input_gradient.register_fake
def _(grad: Tensor, weights: list[Tensor]) -> Tensor:
    return grad.new_empty(len(grad), weights[0].shape[1])


@torch.library.custom_op("mengya::float_weight_gradient", mutates_args=())
def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The transposed grad (T, O) times x (T, C): (O, C)."""
    return multiply(grad.T, x, x.new_empty(grad.shape[1], x.shape[1]))


@weight_gradient.register_fake
def _(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(grad.shape[1], x.shape[1])


@torch.library.custom_op("mengya::float_gated", mutates_args=())
def gated(x: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of gate and up side by side (T, 2 I), and silu(gate) * up (T, I)."""
    gate_up, h = x.new_empty(len(x), 2 * len(gate)), x.new_empty(len(x), len(gate))
    _call("gated_product", x, torch.cat((gate, up)).T, gate_up, gate_up.shape[1], h=h)
    return gate_up, h


@gated.register_fake
def _(x: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), 2 * len(gate)), x.new_empty(len(x), len(gate))


@torch.library.custom_op("mengya::float_gated_gradients", mutates_args=())
def gated_gradients(grad_out: Tensor, down: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradient of down's outputs (T, C): that of `gate_up` (T, 2 I), and silu(gate) * up again (T, I)."""
    grad, h = torch.empty_like(gate_up), gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    _call("gated_gradients", grad_out, down, grad, h.shape[1], gate_up=gate_up, h=h)
    return grad, h


@gated_gradients.register_fake
def _(grad_out: Tensor, down: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate_up), gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)


class Linear(torch.autograd.Function):
    """The outputs of linear layers that share their input x (T, C), side by side (T, O)."""

    @staticmethod
    def forward(ctx, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        return torch.ops.mengya.float_outputs(x, list(weights))

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        x, *weights = ctx.saved_tensors
        grad_x = torch.ops.mengya.float_input_gradient(grad_out, weights) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return grad_x, *(None for _ in weights)
        return grad_x, *torch.ops.mengya.float_weight_gradient(grad_out, x).split([len(w) for w in weights])


class SwiGLU(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) of x (T, C); of what is inside, only the outputs of gate and up are kept."""

    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gate_up, h = torch.ops.mengya.float_gated(x, gate, up)
        ctx.save_for_backward(x, gate_up, gate, up, down)
        return torch.ops.mengya.float_outputs(h, [down])

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        x, gate_up, gate, up, down = ctx.saved_tensors
        grad, h = torch.ops.mengya.float_gated_gradients(grad_out, down, gate_up)
        needs_x, needs_gate, needs_up, needs_down = ctx.needs_input_grad
        grad_x = torch.ops.mengya.float_input_gradient(grad, [gate, up]) if needs_x else None
        opening = (None, None)
        if needs_gate or needs_up:
            opening = torch.ops.mengya.float_weight_gradient(grad, x).chunk(2)
        grad_down = torch.ops.mengya.float_weight_gradient(grad_out, h) if needs_down else None
        return grad_x, *opening, grad_down
