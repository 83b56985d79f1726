"""Log-probabilities of token spans under a causal language model, batched within a fixed memory."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from mengya.model.native.transformer import CausalLM

MAX_LOGITS = 2**25  # 128 MiB of float32 logits a batch, whatever the vocabulary


class Row(NamedTuple):
    """Score `ids[first:last]`, each token given all that precede it in `ids`; 1 <= first < last <= len(ids)."""

    ids: Sequence[int]
    first: int
    last: int


@torch.inference_mode()
def log_probs(model: CausalLM, rows: Sequence[Row], *, max_logits: int = MAX_LOGITS) -> list[float]:
    """Per row, the sum of ln p over its span, in the order of `rows`; summed in float64.

    `model` maps (B, T) int64 ids to (B, T, V) logits and is causal, so padding on the right changes nothing. It is put
    into eval mode and left in the mode that it had.
    """
    device = next(model.parameters()).device
    sums = [0.0] * len(rows)
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(rows, max(1, max_logits // model.config.vocab_size)):
            losses = _span_losses(model, [rows[i] for i in batch], device)
            for i, loss in zip(batch, losses, strict=True):
                sums[i] = -loss
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


def _span_losses(model: CausalLM, rows: list[Row], device: torch.device) -> list[float]:
    """Per row, the negative log-likelihood of its span in nats."""
    width = max(row.last for row in rows) - 1
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    targets = torch.full((len(rows), width), -100)  # cross_entropy's own ignore_index
    for i, row in enumerate(rows):
        assert 1 <= row.first < row.last <= len(row.ids), (row.first, row.last, len(row.ids))
        ids = torch.tensor(row.ids[: row.last])
        input_ids[i, : row.last - 1] = ids[:-1]
        targets[i, row.first - 1 : row.last - 1] = ids[row.first :]
    logits = model(input_ids.to(device)).float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), reduction="none")
    return losses.view(len(rows), width).double().sum(dim=1).tolist()
