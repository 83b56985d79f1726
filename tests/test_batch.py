"""What becomes of a batch's tensors becomes of its further columns."""

import dataclasses

import pytest
import torch

from mengya.batch import Batch, Source


@pytest.fixture
def batch():
    ids = torch.arange(6).view(2, 3)
    extra = {"advantages": torch.ones(2, 3), "rewards": torch.ones(2)}
    return Batch(ids, ids, ids, ids.int(), ids, sequences=2, count=5, extra=extra)


def test_further_columns_are_moved_pinned_and_recorded_with_the_others(batch, monkeypatch):
    moved = batch.to("meta")
    assert moved.extra.keys() == batch.extra.keys() and (moved.sequences, moved.count) == (2, 5)
    tensors = [getattr(moved, f.name) for f in dataclasses.fields(moved)[:5]] + list(moved.extra.values())
    assert len(tensors) == 7 and all(tensor.device.type == "meta" for tensor in tensors)
    recorded = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: recorded.append(tensor))
    batch.record_stream(None)
    assert len(recorded) == 7 and recorded[-1] is batch.extra["rewards"]
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    assert (batch.pin().extra["rewards"] == 2).all() and (batch.pin().labels == batch.labels + 1).all()


def test_a_source_of_files_is_asked_a_step_early_and_may_stop_anywhere():
    class Files(Source):
        def __call__(self, step):
            return []

    assert Files().ahead == 1 and Files().whole(3)
