"""Spans are scored as one by one, whatever the batch."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mengya.evaluate.scoring import Row, log_probs


def one_by_one(model, row: Row) -> float:
    total = 0.0
    with torch.no_grad():
        for at in range(row.first, row.last):
            logits = model(torch.tensor([row.ids[:at]]))[0, -1]
            total += torch.log_softmax(logits.double(), dim=0)[row.ids[at]].item()
    return total


ROWS = [
    Row([256, *b"growing"], 1, 8),
    Row([256, *b"a"], 1, 2),
    Row([256, *b"from raw text"], 5, 9),
    Row([256, *b"bc"], 2, 3),
]


@pytest.mark.parametrize("max_tokens", [1, 10, 4096])
def test_batching_and_padding_change_nothing(make_model, max_tokens: int) -> None:
    model = make_model().eval()
    expected = [one_by_one(model, row) for row in ROWS]
    assert log_probs(model, ROWS, max_tokens=max_tokens) == pytest.approx(expected, rel=1e-5)


def test_model_keeps_its_mode_but_is_scored_without_dropout(make_model) -> None:
    model = make_model().train()
    scores = log_probs(model, ROWS)
    assert model.training
    assert scores == log_probs(model.eval(), ROWS)
    assert not model.training


def test_batches_respect_the_memory_bound(make_model) -> None:
    model = make_model(context=16)
    shapes = []
    hidden = model.hidden
    model.hidden = lambda *, input_ids: (shapes.append(tuple(input_ids.shape)), hidden(input_ids=input_ids))[1]
    log_probs(model, [Row([256] * n, 1, n) for n in (3, 9, 5, 9, 3, 17)] * 3, max_tokens=20)
    assert all(rows == 1 or rows * width <= 20 for rows, width in shapes)
    assert len(shapes) < 18  # short rows do share a batch


def test_logits_never_exist_whole(make_model) -> None:
    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.ndim > 1 and out.shape[-1] == 259:
                self.rows = max(self.rows, out.numel() // 259)
            return out

    rows = [Row([256] * 64, 1, 64)] * 100
    with Largest() as seen:
        log_probs(make_model(context=64), rows, max_tokens=8192)
    assert 0 < seen.rows <= 2048 < 63 * len(rows)


def test_no_rows_no_scores(make_model) -> None:
    assert log_probs(make_model(), []) == []


def test_a_span_without_context_is_a_bug(make_model) -> None:
    with pytest.raises(AssertionError):
        log_probs(make_model(), [Row([256, 1], 0, 2)])
