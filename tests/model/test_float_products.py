"""Products in float32 by the kernel: against float64, on any processor that it can be built for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mengya import processor
from mengya.model import compiling
from mengya.model.native import kernels
from mengya.model.native.float_products import multiply, uses_kernel
from mengya.model.native.linear import project, swiglu

from .differentiating import gradients

pytestmark = pytest.mark.skipif(
    kernels.library("float_products") is None, reason="no AVX2 or no C++ compiler on this machine"
)


@pytest.fixture(autouse=True)
def _any_maker(monkeypatch):
    monkeypatch.setattr(processor, "is_intel", lambda: False)


SHAPES = [(1, 1, 1), (5, 3, 17), (7, 300, 33), (193, 257, 100), (1000, 2049, 31), (385, 512, 2100), (40, 9000, 300)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_a_product_is_that_of_float64(shape, turned):
    torch.manual_seed(0)
    rows, depth, columns = shape
    a = torch.randn(depth, rows).T if turned[0] else torch.randn(rows, depth)
    b = torch.randn(columns, depth).T if turned[1] else torch.randn(depth, columns)
    want = a.double() @ b.double()
    got = multiply(a, b, torch.full((rows, columns), torch.nan))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6 * depth)
    before = torch.randn(columns, rows).T if turned[0] else torch.randn(rows, columns)
    got = multiply(a, b, before.clone(), alpha=0.5, beta=-2.0)
    torch.testing.assert_close(got.double(), 0.5 * want - 2 * before.double(), rtol=1e-5, atol=1e-6 * depth)


def test_parts_of_larger_matrices_are_multiplied_and_written_in_their_place():
    torch.manual_seed(0)
    a, b, out = torch.randn(70, 90)[3:60, 5:70], torch.randn(90, 130)[7:72:1, ::2], torch.zeros(60, 70)
    multiply(a, b, out[1:58, 2:67])
    torch.testing.assert_close(out[1:58, 2:67], a @ b, rtol=1e-5, atol=1e-4)
    assert not out[0].any() and not out[58:].any() and not out[:, :2].any() and not out[:, 67:].any()


@pytest.mark.parametrize("size", [1, 15, 48, 100, 257])
def test_a_symmetric_product_is_mirrored(size):
    torch.manual_seed(0)
    x, before = torch.randn(3, size, 70), torch.randn(3, size, size)
    before = before + before.mT
    got = multiply(x, x.mT, before.clone(), alpha=0.5, beta=2.0, symmetric=True)
    torch.testing.assert_close(got.double(), 0.5 * x.double() @ x.double().mT + 2 * before, rtol=1e-5, atol=1e-4)
    assert torch.equal(got, got.mT)


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 0, 4), (4, 4, 0)])
def test_nothing_times_anything_is_zeros(shape):
    rows, depth, columns = shape
    out = torch.full((rows, columns), torch.nan)
    assert torch.equal(multiply(torch.ones(rows, depth), torch.ones(depth, columns), out), torch.zeros(rows, columns))


def test_the_bits_are_the_same_for_every_number_of_threads():
    torch.manual_seed(0)
    a, b, found, before = torch.randn(1100, 700), torch.randn(700, 224), [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(multiply(a, b, torch.empty(1100, 224)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def test_what_is_not_a_number_is_not_hidden():
    a = torch.ones(8, 20)
    a[3, 7], a[5, 2] = torch.nan, torch.inf
    got = multiply(a, torch.ones(20, 40), torch.empty(8, 40))
    assert got[3].isnan().all() and got[5].isinf().all() and got[[0, 1, 2, 4, 6, 7]].isfinite().all()


@pytest.mark.parametrize(("bias", "compiled"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (project, [(50, 96), (50, 30), (50, 7)]),
        (swiglu, [(50, 163), (50, 163), (163, 50)]),  # not a whole number of vectors
        (swiglu, [(64, 3000), (64, 3000), (3000, 64)]),  # more than is packed at a time
    ],
)
def test_layers_and_their_gradients_are_those_of_float64(function, shapes, bias, compiled):
    torch.manual_seed(1)
    modules, x = [nn.Linear(*shape, bias=bias) for shape in shapes], torch.randn(3, 70, shapes[0][0])
    assert uses_kernel("cpu", x.dtype)
    got = gradients(compiling.compiled(function, dynamic=False) if compiled else function, x, modules)
    want = gradients(function, x.double(), [m.double() for m in modules])
    for g, w in zip(got, want, strict=True):
        assert float((g.double() - w).norm() / w.norm()) < 1e-6


def test_what_is_frozen_gets_no_gradient():
    gate, up, down = (nn.Linear(*shape, bias=False) for shape in ((32, 64), (32, 64), (64, 32)))
    down.requires_grad_(False), up.requires_grad_(False)
    x = torch.randn(9, 32)
    swiglu(x, gate, up, down).sum().backward()
    want = torch.autograd.grad((F.silu(gate(x)) * up(x)).matmul(down.weight.T).sum(), gate.weight)[0]
    torch.testing.assert_close(gate.weight.grad, want, rtol=1e-4, atol=1e-4)
    assert up.weight.grad is None and down.weight.grad is None


def test_large_gates_stay_finite():
    gate, up, down = (nn.Linear(8, 8, bias=False) for _ in range(3))
    x = (torch.eye(8) * torch.tensor([-1e4, -300, -88, 0, 88, 300, 1e4, 1.0])).requires_grad_()
    with torch.no_grad():
        for layer in (gate, up, down):
            layer.weight.copy_(torch.eye(8))
    out = swiglu(x, gate, up, down)
    out.sum().backward()
    plain = x.detach().double().requires_grad_()
    (F.silu(plain) * plain).sum().backward()
    torch.testing.assert_close(out.double(), F.silu(plain) * plain, rtol=1e-6, atol=1e-25)
    torch.testing.assert_close(x.grad.double(), plain.grad, rtol=1e-5, atol=1e-25)


def test_custom_operators_pass_torch_checks():
    x, gate, up, down = torch.randn(9, 20), torch.randn(24, 20), torch.randn(24, 20), torch.randn(20, 24)
    operators, checks = torch.ops.mengya, ("test_schema", "test_autograd_registration", "test_faketensor")
    asked = [
        (operators.float_outputs, (x, [gate, up])),
        (operators.float_input_gradient, (torch.randn(9, 48), [gate, up])),
        (operators.float_weight_gradient, (torch.randn(9, 24), x)),
        (operators.float_gated, (x, gate, up)),
        (operators.float_gated_gradients, (x, down, torch.randn(9, 48))),
    ]
    for operator, arguments in asked:
        torch.library.opcheck(operator, arguments, test_utils=checks)
