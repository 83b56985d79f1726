"""Log-probabilities of token spans under a causal language model, batched within a fixed memory."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from mengya.batch import IGNORE
from mengya.model.language_model import LanguageModel

MAX_TOKENS = 4096
"""Of a batch, padding included."""


class Row(NamedTuple):
    """Score `ids[first:last]`, each token given all that precede it in `ids`; 1 <= first < last <= len(ids)."""

    ids: Sequence[int]
    first: int
    last: int


@torch.inference_mode()
def log_probs(model: LanguageModel, rows: Sequence[Row], *, max_tokens: int = MAX_TOKENS) -> list[float]:
    """Per row, the sum of ln p over its span, in the order of `rows`; summed in float64.

    A model is causal, so padding on the right changes nothing. It is put into eval mode and left in the mode that it
    had. Logits exist for a part of a batch at a time.
    """
    sums = [0.0] * len(rows)
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(rows, max_tokens):
            for i, found in zip(batch, _span_log_probs(model, [rows[i] for i in batch]), strict=True):
                sums[i] = found
    finally:
        model.train(was_training)
    return sums


def _batches(rows: Sequence[Row], max_tokens: int) -> Iterator[list[int]]:
    """Indices of rows of like length; rows x longest stays within `max_tokens`, except for a single row."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: rows[i].last):
        if batch and (len(batch) + 1) * (rows[i].last - 1) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _span_log_probs(model: LanguageModel, rows: list[Row]) -> list[float]:
    width = max(row.last for row in rows) - 1
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORE)
    for i, row in enumerate(rows):
        assert 1 <= row.first < row.last <= len(row.ids), (row.first, row.last, len(row.ids))
        ids = torch.tensor(row.ids[: row.last])
        input_ids[i, : row.last - 1] = ids[:-1]
        labels[i, row.first - 1 : row.last - 1] = ids[row.first :]
    hidden, _ = model.hidden(input_ids=input_ids.to(model.device))
    return model.log_probs(hidden, labels.to(model.device)).double().sum(dim=1).tolist()
