"""Linear layers over float32 weights and activations of another type, and the gradient of their weights.

In bfloat16 the forward product and the input's gradient are PyTorch's. The weight's gradient sums over the rows of both
factors, which CPU libraries do at half their speed and round to the activations' type; on CPUs with AMX the kernel of
kernels/weight_gradient.cpp computes it, in float32. In float32, all products that have gradients are those of
float_products.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mengya.model.compiling import decision, recomputed
from mengya.model.native import float_products, kernels
from mengya.model.native.kernels import Factor, ProductsProblem, WeightGradientProblem


@decision
def uses_kernels(device_type: str, dtype: torch.dtype, *sizes: int) -> bool:
    """Whether the kernels take tensors of this kind. The first call builds them."""
    right = device_type == "cpu" and dtype == torch.bfloat16 and all(size % 32 == 0 for size in sizes)
    return right and None not in (kernels.library("weight_gradient"), kernels.library("products"))


def is_plain(*layers: nn.Module) -> bool:
    """Whether these layers consist of weights and biases alone, so that reading them is as good as a call."""
    return all(
        type(m) is nn.Linear
        and not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)
        for m in layers
    )


def _call(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a layer that is not plain (wrapped by an adapter, parametrised, with hooks), in the type of x."""
    if x.dtype not in (torch.bfloat16, torch.float16):
        return layer(x)
    with torch.autocast(x.device.type, x.dtype):
        return layer(x).to(x.dtype)


def project(x: Tensor, *layers: nn.Linear) -> list[Tensor]:
    """The outputs of linear layers that share their input."""
    if not is_plain(*layers):
        return [_call(layer, x) for layer in layers]
    if torch.is_grad_enabled():
        return list(project_joined(x, *layers).split([m.out_features for m in layers], dim=-1))
    return [F.linear(x, m.weight.to(x.dtype), None if m.bias is None else m.bias.to(x.dtype)) for m in layers]


def project_joined(x: Tensor, *layers: nn.Linear) -> Tensor:
    """The outputs of linear layers that share their input, side by side.

    With gradients they are one matrix product: the weights are cast anyway, and joined in the same pass. Without
    gradients the weights already have the right type; then the outputs are joined, because they are smaller.
    """
    if not torch.is_grad_enabled() or not is_plain(*layers):
        return torch.cat(project(x, *layers), dim=-1)
    weights = [m.weight for m in layers]
    sizes = (x.shape[-1], *(m.out_features for m in layers))
    if float_products.uses_kernel(x.device.type, x.dtype, *(w.dtype for w in weights)):
        out = float_products.Linear.apply(x.flatten(0, -2), *weights).view(*x.shape[:-1], sum(sizes[1:]))
    elif uses_kernels(x.device.type, x.dtype, *sizes):
        out = _Product.apply(x, *weights)
    else:
        out = F.linear(x, recomputed(_joined, *weights).to(x.dtype))
    return out if layers[0].bias is None else out + torch.cat([m.bias for m in layers]).to(x.dtype)


def _joined(*weights: Tensor) -> Tensor:
    return torch.cat(weights)


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
    kernels.call("weight_gradient", "weight_gradient", problem)
    return grads


@weight_gradient.register_fake
def _empty_gradients(grad_y: Tensor, x: Tensor, sizes: list[int], ends: Tensor | None) -> list[Tensor]:
    groups = 1 if ends is None else len(ends)
    return [x.new_empty((groups, size, x.shape[1]), dtype=torch.float32) for size in sizes]


def _call_products(
    function: str, x: Tensor, weight: Tensor, ends: Tensor | None, transposed: bool, outer: int, **others: Tensor | None
) -> None:
    """Call a function of products.cpp on rows x, each group of which has a matrix of its own; ends None: one group."""
    if ends is None:
        ends = torch.tensor([len(x)], dtype=torch.int32)
    # The kernel itself checks nothing.
    for matrix in (weight, others.get("up_weight")):
        assert matrix is None or (matrix[0].is_contiguous() and matrix.dtype == weight.dtype), "weights of another form"
    assert weight.dtype in (torch.float32, torch.bfloat16) and x.dtype == torch.bfloat16 and x.is_contiguous()
    scale = others.get("scale")
    assert scale is None or (scale.dtype == torch.float32 and scale.is_contiguous())
    problem = ProductsProblem(
        groups=len(ends), inner=x.shape[1], outer=outer, threads=torch.get_num_threads(),
        transposed=transposed, wide_weights=weight.dtype == torch.float32, group_stride=weight.stride(0),
        ends=ends.data_ptr(), rows=x.data_ptr(), weight=weight.data_ptr(),
        **{name: t.data_ptr() for name, t in others.items() if t is not None},
    )  # fmt: skip
    kernels.call("products", function, problem)


def multiply_groups(x: Tensor, weight: Tensor, ends: Tensor | None, transposed: bool, out: Tensor) -> None:
    """Write to `out` (M, O) each group of rows of x (M, I) times its matrix.

    weight (groups, I, O), or (groups, O, I) if `transposed`, bf16 or float32; x and out bf16; all contiguous, I and O
    multiples of 32; out as torch allocates it. ends (groups,) int32: the end row of each group, the last M; None: one
    group.
    """
    _call_products("product", x, weight, ends, transposed, out.shape[1], to=out)


def output_projection(x: Tensor, weight: Tensor) -> Tensor:
    """x (T, C) times weight (O, C) of the same type: (T, O). Outside autograd."""
    out = x.new_empty(len(x), len(weight))
    if not uses_kernels(x.device.type, x.dtype, *weight.shape):
        return float_products.multiply(x, weight.T, out)
    multiply_groups(x.contiguous(), weight.contiguous()[None], None, True, out)
    return out


def output_gradient(grad_y: Tensor, x: Tensor) -> Tensor:
    """The gradient of output_projection's weight, (O, C), float32 if the kernel makes it. grad_y (T, O), x (T, C)."""
    if not uses_kernels(x.device.type, x.dtype, grad_y.shape[1], x.shape[1]):
        return float_products.multiply(grad_y.T, x, x.new_empty(grad_y.shape[1], x.shape[1]))
    return weight_gradient(grad_y, x, [grad_y.shape[1]], None)[0][0]


def swiglu(x: Tensor, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> Tensor:
    """down(silu(gate(x)) * up(x)), as Shazeer 2020 (arXiv:2002.05202)."""
    fused = torch.is_grad_enabled() and is_plain(gate, up, down) and gate.bias is None
    if fused and float_products.uses_kernel(x.device.type, x.dtype, *(m.weight.dtype for m in (gate, up, down))):
        out = float_products.SwiGLU.apply(x.flatten(0, -2), gate.weight, up.weight, down.weight)
        return out.view(*x.shape[:-1], down.out_features)
    if fused and uses_kernels(x.device.type, x.dtype, x.shape[-1], gate.out_features, down.out_features):
        out = swiglu_groups(x.flatten(0, -2), [gate.weight[None], up.weight[None]], down.weight[None])
        return out.view(*x.shape[:-1], out.shape[-1])
    gate_out, up_out = project(x, gate, up)
    return project(recomputed(_gated, gate_out, up_out), down)[0]


def _gated(gate_out: Tensor, up_out: Tensor) -> Tensor:
    return F.silu(gate_out) * up_out


def swiglu_groups(
    x: Tensor, opening: list[Tensor], down: Tensor, ends: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """down(silu(gate(x)) * up(x) * scale) by the kernels, which must take all sizes (`uses_kernels`).

    x (T, C) bf16. opening: gate and up, each (groups, I, C), or both in one (groups, 2 I, C); down (groups, C, I).
    ends: see multiply_groups. scale (T,) float32.
    """
    return torch.ops.mengya.swiglu(x, opening, down, ends, scale)[0]


@torch.library.custom_op("mengya::swiglu", mutates_args=())
def _swiglu(
    x: Tensor, opening: list[Tensor], down: Tensor, ends: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output (T, C) and what the backward pass needs besides: gate and up side by side (T, 2 I)."""
    x = x.contiguous()
    out, gate_up = _swiglu_outputs(x, opening, down, ends, scale)
    gate, up = opening if len(opening) == 2 else opening[0].chunk(2, dim=1)
    h = x.new_empty(len(x), down.shape[2])
    _call_products("gated_product", x, gate, ends, True, down.shape[2], up_weight=up, scale=scale, gate_up=gate_up, h=h)
    if ends is None:
        torch.mm(h, down[0].to(x.dtype).T, out=out)
    else:
        multiply_groups(h, down, ends, True, out)
    return out, gate_up


@_swiglu.register_fake
def _swiglu_outputs(
    x: Tensor, opening: list[Tensor], down: Tensor, ends: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), down.shape[1]), x.new_empty(len(x), 2 * down.shape[2])


@torch.library.custom_op("mengya::swiglu_backward", mutates_args=())
def _swiglu_backward(
    grad_out: Tensor, x: Tensor, gate_up: Tensor, opening: list[Tensor], down: Tensor, ends: Tensor | None,
    scale: Tensor | None,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:  # fmt: skip
    """Gradients of x, opening, down and scale; the last one in (I / 32, T) parts that are still to be added up."""
    x, grad_out = x.contiguous(), grad_out.contiguous()
    inner = down.shape[2]
    grad_x, grad, h = torch.empty_like(x), torch.empty_like(gate_up), x.new_empty(len(x), inner)
    parts = x.new_empty((0 if scale is None else inner // 32, len(x)), dtype=torch.float32)
    _call_products(
        "gated_gradients", grad_out, down, ends, False, inner,
        scale=scale, gate_up=gate_up, h=h, grad_gate_up=grad, grad_scale=parts,
    )  # fmt: skip
    if ends is None:
        torch.mm(grad, torch.cat([w[0] for w in opening]).to(x.dtype), out=grad_x)
    else:
        multiply_groups(grad, torch.cat(opening, 1) if len(opening) > 1 else opening[0], ends, False, grad_x)
    grads = weight_gradient(grad, x, [w.shape[1] for w in opening], ends)
    return grad_x, grads, weight_gradient(grad_out, h, [down.shape[1]], ends)[0], parts


@_swiglu_backward.register_fake
def _(grad_out, x: Tensor, gate_up, opening: list[Tensor], down: Tensor, ends, scale: Tensor | None):
    parts = x.new_empty((0 if scale is None else down.shape[2] // 32, len(x)), dtype=torch.float32)
    grads = [w.new_empty(w.shape, dtype=torch.float32) for w in opening]
    return x.new_empty(x.shape), grads, down.new_empty(down.shape, dtype=torch.float32), parts


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, opening, down, ends, scale = inputs
    ctx.save_for_backward(x, output[1], down, ends, scale, *opening)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad_out: Tensor, _grad_gate_up: Tensor | None):
    x, gate_up, down, ends, scale, *opening = ctx.saved_tensors
    grad_x, grads, grad_down, parts = torch.ops.mengya.swiglu_backward(grad_out, x, gate_up, opening, down, ends, scale)
    grad_scale = None if scale is None else parts.sum(0)
    grads = [g.to(w.dtype) for g, w in zip(grads, opening, strict=True)]
    return grad_x, grads, grad_down.to(down.dtype), None, grad_scale


_swiglu.register_autograd(_differentiate, setup_context=_save)
