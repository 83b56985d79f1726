"""The chunked projection with cross-entropy against torch's own in float64."""

import pytest
import torch
import torch.nn.functional as F

from mengya.batch import IGNORE
from mengya.model.log_probs import UNIT, linear_cross_entropy, token_log_probs
from mengya.runtime import compiler_missing

SIZE, ENTRIES = 16, 37
CHUNK = 2048
ROWS = [1, UNIT, UNIT + 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5]
IGNORED = ["none", "some", "first", "last", "all"]


def problem(rows, ignored, seed=0, size=SIZE, entries=ENTRIES):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, size, generator=generator)
    weight = torch.randn(entries, size, generator=generator)
    labels = torch.randint(entries, (rows,), generator=generator)
    masks = {
        "none": torch.zeros(rows, dtype=torch.bool),
        "some": torch.rand(rows, generator=generator) < 0.6,
        "first": torch.arange(rows) < rows // 2,
        "last": torch.arange(rows) >= rows // 2,
        "all": torch.ones(rows, dtype=torch.bool),
    }
    return hidden, weight, labels.masked_fill(masks[ignored], IGNORE)


def reference(hidden, weight, labels, upstream):
    """Loss of each row, and the gradients of `upstream` times it, in float64."""
    h, w = (x.double().requires_grad_() for x in (hidden, weight))
    losses = F.cross_entropy(h @ w.T, labels, ignore_index=IGNORE, reduction="none")
    (losses * upstream).sum().backward()
    return losses.detach(), h.grad, w.grad


def close(found, wanted, tolerance):
    """Largest difference, relative to the largest entry."""
    scale = max(float(wanted.abs().max()), 1e-30)
    return float((found.double() - wanted).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("ignored", IGNORED)
def test_loss_and_gradients(rows, ignored):
    hidden, weight, labels = problem(rows, ignored)
    losses, grad_hidden, grad_weight = reference(hidden, weight, labels, 1 / 7)
    h, w = (x.clone().requires_grad_() for x in (hidden, weight))
    total = linear_cross_entropy(h, w, labels, compiled=False)
    (total / 7).backward()
    assert total.dtype == torch.float32 and total.shape == ()
    assert close(total.detach(), losses.sum(), 1e-6)
    assert close(h.grad, grad_hidden, 1e-5) and close(w.grad, grad_weight, 1e-5)
    assert not h.grad[labels == IGNORE].any()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("ignored", IGNORED)
def test_log_probs_and_gradients(rows, ignored):
    hidden, weight, labels = problem(rows, ignored)
    upstream = torch.randn(rows, generator=torch.Generator().manual_seed(1))
    losses, grad_hidden, grad_weight = reference(hidden, weight, labels, -upstream)
    h, w = (x.clone().requires_grad_() for x in (hidden, weight))
    found = token_log_probs(h[None], w, labels[None])
    (found[0] * upstream).sum().backward()
    assert found.dtype == torch.float32 and found.shape == (1, rows)
    assert close(found.detach()[0], -losses, 1e-6)
    assert not found[0][labels == IGNORE].any()
    assert close(h.grad, grad_hidden, 1e-5) and close(w.grad, grad_weight, 1e-5)


def test_a_tied_weight_gathers_both_gradients():
    _, weight, labels = problem(20, "some")
    ids = torch.randint(ENTRIES, (20,), generator=torch.Generator().manual_seed(2))
    wide = weight.double().requires_grad_()
    F.cross_entropy(wide[ids] @ wide.T, labels, ignore_index=IGNORE, reduction="sum").backward()
    narrow = weight.clone().requires_grad_()
    linear_cross_entropy(narrow[ids], narrow, labels, compiled=False).backward()
    assert close(narrow.grad, wide.grad, 1e-5)


@pytest.mark.parametrize("count", [1, 3, 1000, 3073])
@pytest.mark.parametrize(("size", "entries"), [(SIZE, ENTRIES), (64, 96)])  # the second is served by the native kernels
def test_bfloat16_hidden_with_float32_weight(count, size, entries):
    hidden, weight, labels = problem(300, "some", size=size, entries=entries)
    hidden = hidden.bfloat16()
    exact = weight.bfloat16()  # what the product sees
    losses, grad_hidden, grad_weight = reference(hidden, exact, labels, 1 / count)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    total = linear_cross_entropy(h, w, labels, compiled=False)
    (total / count).backward()
    assert (h.grad.dtype, w.grad.dtype) == (torch.bfloat16, torch.float32)
    assert close(total.detach(), losses.sum(), 3e-3)
    assert close(h.grad, grad_hidden, 2e-2) and close(w.grad, grad_weight, 2e-2)
    # Rounding errors cancel on average; a rounded scale would not.
    for found, wanted in ((h.grad, grad_hidden), (w.grad, grad_weight)):
        projection = (found.double() * wanted).sum() / wanted.square().sum()
        assert abs(projection - 1) < 8e-4, projection


def test_huge_logits_stay_finite():
    hidden, weight, labels = problem(10, "none")
    h = (hidden * 1e4).requires_grad_()
    total = linear_cross_entropy(h, weight, labels, compiled=False)
    total.backward()
    assert total.isfinite() and h.grad.isfinite().all()
    assert token_log_probs(hidden[None] * 1e4, weight, labels[None]).isfinite().all()


@pytest.mark.skipif(compiler_missing("cpu") is not None, reason="no C++ compiler")
@pytest.mark.parametrize("ignored", ["some", "all"])
def test_compiled_equals_eager(ignored):
    hidden, weight, labels = problem(CHUNK + 3, ignored)
    found = []
    for compiled in (False, True):
        h, w = (x.clone().requires_grad_() for x in (hidden, weight))
        total = linear_cross_entropy(h, w, labels, compiled)
        total.backward()
        found.append((total.detach(), h.grad, w.grad))
    for eager, fused in zip(*found, strict=True):
        assert close(fused, eager.double(), 1e-6)
