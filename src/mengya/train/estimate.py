"""What a training stage will need, from a few seconds of real steps on random batches of the right shape."""

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from mengya import runtime
from mengya.batch import Batch
from mengya.errors import UserError
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM, count_active_parameters, count_parameters, flops_per_token
from mengya.stage import Estimate, Training
from mengya.train.loop import Guard, fit
from mengya.train.objectives import Objective
from mengya.train.training import TrainingConfig, make_engine, prepare_model


class Measured(NamedTuple):
    first: float
    """Seconds of the first step: compilation."""
    step: float
    memory: int


def estimate_training(
    settings: TrainingConfig,
    shape: ModelConfig,
    tokens: float,
    make_objective: Callable[[CausalLM], Objective],
    per_count: int = 0,
) -> Estimate:
    """`tokens` in an epoch. `make_objective` gets the prepared model. `per_count`: sequences that count as one."""
    if not shape.vocab_size:
        raise UserError("the size of the vocabulary is not known; set model.vocab_size in [pretrain]")
    measured = measure(settings, shape, make_objective, per_count)
    steps = settings.steps or max(1, round(settings.epochs * tokens / settings.batch_tokens))
    heldout = (steps / settings.heldout_every + 1) * settings.heldout_rows / settings.rows * measured.step / 2
    parameters = count_parameters(shape)
    return Estimate(
        seconds=3 + max(measured.first, 0) + steps * measured.step + heldout,
        disk=parameters * 4 + parameters * 12 * settings.keep_checkpoints,
        model=shape,
        vocab_size=shape.vocab_size,
        training=Training(
            parameters=parameters,
            active_parameters=count_active_parameters(shape),
            tokens=steps * settings.batch_tokens,
            steps=steps,
            flops=steps * settings.batch_tokens * flops_per_token(shape, settings.seq_len / 2),
            tokens_per_second=settings.batch_tokens / measured.step,
            memory=measured.memory,
        ),
    )


def blank_model(shape: ModelConfig) -> CausalLM:
    """With random weights."""
    model = CausalLM(shape)
    model.initialize(torch.Generator().manual_seed(0))
    return model


def measure(
    settings: TrainingConfig,
    shape: ModelConfig,
    make_objective: Callable[[CausalLM], Objective],
    per_count: int,
    seconds: float = 4.0,
) -> Measured:
    """Take real steps for a few seconds."""
    model, _ = prepare_model(blank_model(shape), settings)
    engine = make_engine(model, make_objective(model), settings)
    source = _random_batches(settings, shape.vocab_size, per_count)
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
    return Measured(sum(times[:2]) - 2 * later[len(later) // 2], sum(later) / len(later), runtime.peak_memory())


def _random_batches(settings: TrainingConfig, vocab_size: int, per_count: int) -> Callable[[int], list[Batch]]:
    """A source of random batches; a row holds one document, or as many sequences as count as one."""
    rows, length = min(settings.micro_batch or settings.rows, settings.rows), settings.seq_len
    if settings.rows % rows:
        raise UserError(f"micro_batch={rows} does not divide the {settings.rows} rows of a step; try a divisor")
    sequences = max(per_count, 1)
    size = length // sequences
    starts = (torch.arange(length) // size * size).to(torch.int32).expand(rows, length).contiguous()
    generator = torch.Generator().manual_seed(0)

    def source(step: int) -> list[Batch]:
        ids = torch.randint(0, vocab_size, (rows, length + 1), generator=generator)
        batch = Batch(
            input_ids=ids[:, :-1],
            labels=ids[:, 1:],
            position_ids=torch.arange(length) - starts.long(),
            starts=starts,
            sequence_ids=torch.arange(rows)[:, None] * sequences + torch.arange(length) // size,
            sequences=rows * sequences,
            count=rows if per_count else rows * length,
        )
        return [batch] * (settings.rows // rows)

    return source
