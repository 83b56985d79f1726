"""What a training stage will need, from a few seconds of real steps on random batches of the right shape."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from mengya import runtime
from mengya.batch import Batch, Source
from mengya.data.packing import PackedRow, make_batch
from mengya.errors import UserError
from mengya.metrics import format_count, say
from mengya.model.language_model import LanguageModel
from mengya.model.load import outline
from mengya.stage import Estimate, Promise, Training
from mengya.train.loop import Guard, fit
from mengya.train.memory import memory_per_device, on_gpus
from mengya.train.objectives import Objective
from mengya.train.optimizer import freeze
from mengya.train.settings import TrainingConfig, engine_for, prepare_model


class Measured(NamedTuple):
    first: float
    """Seconds of the first step: compilation."""
    step: float
    memory: int | None


def estimate_training(
    settings: TrainingConfig,
    promise: Promise,
    tokens: float,
    objective: Callable[[], Objective],
    per_count: int = 0,
    frozen: int = 0,
) -> Estimate:
    """`promise`: of the model that is trained. `tokens` in an epoch. `objective` is made if the model fits into memory.
    `per_count`: sequences that count as one. `frozen`: further models of this size, which the objective asks.

    A model that does not fit is counted, and nothing is measured.
    """
    how = settings.loading | {"lora": settings.lora}
    shape = _shape(promise, "meta", how)
    freeze(shape, settings.freeze)
    trained = sum(p.numel() for p in shape.parameters() if p.requires_grad)
    steps = settings.steps or max(1, round(settings.epochs * tokens / settings.batch_tokens))
    device = runtime.pick_device()
    half = runtime.pick_dtype(settings.dtype, device) == torch.bfloat16
    needed, free = memory_per_device(shape, settings, 1, device, half, frozen), runtime.free_memory(device)
    measured = None
    if free is None or needed < free:
        if settings.lora is not None and settings.lora.quantize != "none":
            say("  measured with whole weights: in 4 bits they need less memory and more time")
        measured = measure(settings, random_model(promise, how), objective(), per_count)
    else:
        say(f"  not measured: about {format_count(needed)}B of memory are needed, and {format_count(free)}B are free")
    step = measured.step if measured else 0
    heldout = (steps / settings.heldout_every + 1) * settings.heldout_rows / settings.rows * step / 2
    return Estimate(
        seconds=3 + max(measured.first, 0) + steps * step + heldout if measured else 0,
        disk=(trained if settings.lora else shape.all_parameters()) * 4 + trained * 12 * settings.keep_checkpoints,
        training=Training(
            parameters=shape.all_parameters(),
            active_parameters=shape.active_parameters(),
            tokens=steps * settings.batch_tokens,
            steps=steps,
            flops=steps * settings.batch_tokens * shape.flops_per_token(settings.seq_len / 2),
            tokens_per_second=settings.batch_tokens / step if measured else None,
            memory=measured.memory if measured else needed,
            on_gpus=on_gpus(shape, settings, frozen),
        ),
    )


def _shape(promise: Promise, device: str, how: Mapping[str, Any]) -> LanguageModel:
    """A model without weights, unless it is made on a device. UserError if its shape is not known."""
    description = promise.model
    if description is None or description.get("vocab_size") == 0:
        raise UserError("the shape of the model is not known before the stages above have run; run them first")
    return outline(description, device=device, **how)


@torch.no_grad()
def random_model(promise: Promise, how: Mapping[str, Any]) -> LanguageModel:
    """A model of the promised shape that has learnt nothing; `how`: further arguments of `outline`.

    UserError if its shape is not known.
    """
    model = _shape(promise, "cpu", how)
    generator = torch.Generator().manual_seed(0)
    for weight in model.weights().values():
        weight.normal_(0.0, 0.02, generator=generator)
    return model


def measure(
    settings: TrainingConfig, model: LanguageModel, objective: Objective, per_count: int, seconds: float = 4.0
) -> Measured:
    """Take real steps for a few seconds."""
    peak = runtime.PeakMemory()
    freeze(model, settings.freeze)
    engine = engine_for(prepare_model(model, settings), objective, settings)
    source = _RandomBatches(settings, model.vocab_size, per_count)
    times: list[float] = []
    last = time.perf_counter()
    updates = fit(engine, lambda _: 0.0, source, range(1000), settings.optim.max_grad_norm, Guard())
    with contextlib.closing(updates):
        for _ in updates:
            times.append(time.perf_counter() - last)
            last += times[-1]
            if len(times) >= 4 and sum(times[1:]) > seconds:
                break
    later = sorted(times[2:])
    return Measured(sum(times[:2]) - 2 * later[len(later) // 2], sum(later) / len(later), peak.device() or peak.host())


class _RandomBatches(Source):
    """A row holds one document, or as many sequences as count as one."""

    def __init__(self, settings: TrainingConfig, vocab_size: int, per_count: int):
        rows = settings.rows_at_once(1)
        length = settings.seq_len
        size = length // max(per_count, 1)
        number = np.arange(length) // size
        starts = (number * size).astype(np.int32)
        ids = np.random.default_rng(0).integers(0, vocab_size, (rows, length + 1))
        batch = make_batch([PackedRow(row[:-1], row[1:], starts, number) for row in ids], per_count)
        self._batches = [batch] * (settings.rows // rows)

    def __call__(self, step: int) -> list[Batch]:
        return self._batches
