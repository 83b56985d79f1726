"""Linear layers: the native kernels against float64, and the same results without them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mengya import processor
from mengya.model.native import kernels, linear
from mengya.model.native.linear import project, swiglu, weight_gradient

from .differentiating import gradients

needs_kernels = pytest.mark.skipif(
    not processor.has_amx() or kernels.library("weight_gradient") is None, reason="no AMX or no C++ compiler here"
)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30))


@needs_kernels
@pytest.mark.parametrize(
    ("tokens", "width", "sizes", "ends"),
    [
        (100, 64, [32], None),
        (1, 512, [64, 32], None),
        (777, 1408, [512], None),  # the gradient's factor is the narrower one
        (1500, 256, [96, 64, 32], None),
        (2100, 512, [1056], None),
        (700, 96, [64, 128], [0, 5, 300, 300, 700]),  # experts, some without a token
        (2100, 1056, [512], [10, 1200, 2100]),
    ],
)
def test_weight_gradient_is_the_exact_sum(tokens, width, sizes, ends):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).bfloat16()
    grad = torch.randn(tokens, sum(sizes) + 32, generator=generator).bfloat16()[:, :-32]  # rows need not be dense
    got = weight_gradient(grad, x, sizes, None if ends is None else torch.tensor(ends, dtype=torch.int32))
    for part, weight in zip(grad.split(sizes, 1), got, strict=True):
        begins = [0, *ends[:-1]] if ends else [0]
        for group, (begin, end) in enumerate(zip(begins, ends or [tokens], strict=True)):
            want = part[begin:end].double().T @ x[begin:end].double()
            assert weight.dtype == torch.float32
            torch.testing.assert_close(weight[group].double(), want, rtol=1e-5, atol=1e-4)


@needs_kernels
def test_weight_gradient_has_the_same_bits_for_every_number_of_threads():
    x, grad = torch.randn(1100, 160).bfloat16(), torch.randn(1100, 224).bfloat16()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.cat(weight_gradient(grad, x, [128, 96], None), 1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def layers(*shapes: tuple[int, int], bias: bool = False) -> list[nn.Linear]:
    torch.manual_seed(1)
    return [nn.Linear(*shape, bias=bias) for shape in shapes]


FUNCTIONS = {
    "project": (project, [(64, 96), (64, 32), (64, 32)]),
    "swiglu": (swiglu, [(64, 160), (64, 160), (160, 64)]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("served", [False, pytest.param(True, marks=needs_kernels)])
def test_bfloat16_layers_are_as_near_to_float64_as_rounding_allows(name, bias, served, monkeypatch):
    function, shapes = FUNCTIONS[name]
    modules, x = layers(*shapes, bias=bias), torch.randn(3, 700, 64)
    if not served:
        monkeypatch.setattr(linear, "uses_kernels", lambda *_: False)
    got = gradients(function, x.bfloat16(), modules)
    monkeypatch.setattr(linear, "uses_kernels", lambda *_: False)
    want = gradients(function, x.bfloat16().double(), [m.double() for m in modules])
    for g, w in zip(got, want, strict=True):
        assert relative(g, w) < 0.01


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("inner", "outer", "ends"),
    [
        (64, 96, [0, 5, 300, 300, 700]),
        (1024, 544, [10, 1200]),
        (1056, 32, [1]),
        (512, 512, [129]),
        (64, 64, [2, 1903, 1910]),
    ],
)
def test_grouped_products_are_as_near_to_float64_as_rounding_allows(inner, outer, ends, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(ends[-1], inner).bfloat16(), torch.randn(len(ends), outer, inner).to(dtype)
    for transposed, matrices in ((True, weight), (False, weight.mT.contiguous())):
        out = torch.full((ends[-1], outer), 7.0).bfloat16()
        linear.multiply_groups(x, matrices, torch.tensor(ends, dtype=torch.int32), transposed, out)
        rows = zip([0, *ends[:-1]], ends, weight.bfloat16().double(), strict=True)
        want = torch.cat([x[begin:end].double() @ matrix.T for begin, end, matrix in rows])
        torch.testing.assert_close(out.double(), want, rtol=0.01, atol=1e-3)


@needs_kernels
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(("size", "inner", "ends"), [(64, 96, [0, 5, 300, 300, 700]), (544, 1056, [33]), (32, 32, [0])])
def test_gated_groups_are_as_near_to_float64_as_rounding_allows(size, inner, ends, joined):
    torch.manual_seed(0)
    groups, rows = len(ends), ends[-1]
    x, scale = torch.randn(rows, size).bfloat16().requires_grad_(), torch.rand(rows).requires_grad_()
    gate, up = ((torch.randn(groups, inner, size) * size**-0.5).requires_grad_() for _ in range(2))
    down = (torch.randn(groups, size, inner) * inner**-0.5).requires_grad_()
    upstream = torch.randn(rows, size).bfloat16()
    opening = [torch.cat([gate, up], 1)] if joined else [gate, up]
    out = linear.swiglu_groups(x, opening, down, torch.tensor(ends, dtype=torch.int32), scale)
    got = [out.detach(), *torch.autograd.grad(out, (x, scale, gate, up, down), upstream)]
    wide = [t.detach().double().requires_grad_() for t in (x, scale, gate, up, down)]
    y, s, g, u, d = wide
    parts = zip(y.tensor_split(ends[:-1]), s.tensor_split(ends[:-1]), g, u, d, strict=True)
    out = torch.cat([(F.silu(r @ a.T) * (r @ b.T) * w[:, None]) @ c.T for r, w, a, b, c in parts])
    want = [out.detach(), *torch.autograd.grad(out, wide, upstream.double())]
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) < 0.02


@needs_kernels
def test_frozen_weights_get_no_gradient():
    (module,) = layers((64, 32))
    module.weight.requires_grad_(False)
    x = torch.randn(5, 64).bfloat16().requires_grad_()
    project(x, module)[0].sum().backward()
    assert module.weight.grad is None and x.grad is not None


@needs_kernels
def test_gate_takes_any_finite_value():
    gate = torch.tensor([0.0, -0.0, 1e-30, 80.0, -80.0, 1e30, -1e30, 3e38, -3e38] + [1.0] * 23)
    modules = layers((32, 32), (32, 32), (32, 32))
    for module, diagonal in zip(modules, (gate, torch.ones(32), torch.ones(32)), strict=True):
        module.weight.data.copy_(torch.diag(diagonal))
    x = torch.ones(2, 32).bfloat16()
    out, grad, *_ = gradients(swiglu, x, modules)
    want = F.silu(gate.bfloat16().double())
    torch.testing.assert_close(out[0].double(), want, rtol=0.01, atol=1e-30)
    assert grad[:, :5].isfinite().all()
