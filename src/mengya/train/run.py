"""One training run: resume, log, measure, save, stop cleanly. The caller says what is measured and what is best."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mengya import ranks, runtime
from mengya.batch import Source
from mengya.data.mixture import HeldoutPart, heldout_metrics
from mengya.data.packing import BatchSource, Packer, in_order
from mengya.errors import UserError
from mengya.metrics import MetricsLog, ProgressLine, format_count, say
from mengya.model.language_model import LanguageModel
from mengya.text.tokenizer import Tokenizer
from mengya.train import balance
from mengya.train.checkpoint import Checkpoints, Saved, read_weights
from mengya.train.engines.single import Engine
from mengya.train.loop import Guard, Metrics, by_pattern, fit, measure
from mengya.train.objectives import Objective
from mengya.train.optimizer import freeze, make_schedule, warmup_steps
from mengya.train.settings import TrainingConfig, engine_for, prepare_model

SCRATCH = ("checkpoints", "shards")
"""What only training needs; a stage deletes it once its artifact is whole."""
_BEST = "best"
_WATCHED = 10
"""Updates after which weights that no gradient has reached are named."""


def has_checkpoints(directory: Path) -> bool:
    """Whether a half-filled directory has any, whole or not."""
    return any((directory / SCRATCH[0]).glob("[!.]*"))


def train_model(
    model: LanguageModel,
    rebuild: Callable[[], LanguageModel],
    objective: Objective,
    settings: TrainingConfig,
    train: Packer,
    heldout: Sequence[HeldoutPart],
    out: Path,
    tokenizer: Tokenizer,
    eos_ids: Sequence[int],
) -> None:
    """Train `model` on all ranks, and leave in `out` a model directory with the weights best on held-out data, or the
    last ones if there is none.

    `rebuild` makes the model again, as it was given; the trained weights are copied into it. `eos_ids` end an answer.
    """
    freeze(model, settings.freeze)
    engine = engine_for(prepare_model(model, settings), objective, settings)
    source = BatchSource(
        train, settings.rows, settings.rows_at_once(ranks.size()), settings.seed, ranks.rank(), ranks.size()
    )
    run = Run(
        engine,
        source,
        settings.steps or source.steps(settings.epochs),
        out,
        settings,
        after_step=balance.after_step(model, settings.balance),
        evaluate=partial(heldout_loss, engine, heldout, source.rows_per_batch, settings.heldout_rows)
        if heldout
        else None,
        best=("heldout_loss", "min") if heldout else None,
    )
    run.train(out.name.removesuffix(".partial"))
    if ranks.is_main():
        finished = rebuild()
        finished.overlay(run.weights())
        finished.save(out, None, list(eos_ids), tokenizer.eos_id)
        tokenizer.save(out)


def heldout_loss(engine: Engine, parts: Sequence[HeldoutPart], rows_per_batch: int, max_rows: int) -> Metrics:
    """Measure the loss of all parts together, by their shares; of several parts each one's, too."""
    share = ranks.rank(), ranks.size()
    losses = [measure(engine, in_order(part.packer, rows_per_batch, max_rows, *share)) for part in parts]
    return heldout_metrics(parts, losses)


class Run:
    """A run in one directory, on all ranks; `metrics.jsonl` and `checkpoints/` say how far it is."""

    def __init__(
        self,
        engine: Engine,
        source: Source,
        steps: int,
        out: Path,
        settings: TrainingConfig,
        after_step: Callable[[Metrics], None] | None = None,
        evaluate: Callable[[], Metrics] | None = None,
        best: tuple[str, Literal["min", "max"]] | None = None,
    ):
        """Functions are called on all ranks alike, and give the same on all.

        `after_step`: with the metrics of each step whose update was applied. `evaluate`: every `heldout_every` steps
        and after the last; its figures are logged. `best`: the figure by which `weights` chooses, lowest or highest;
        None: it takes the last weights.
        """
        self.engine, self.source, self.steps, self.out, self.settings = engine, source, steps, out, settings
        self._after_step, self._evaluate, self._best = after_step, evaluate, best
        torch.manual_seed(settings.seed + ranks.rank())
        self.speed = _Speed(engine.model, settings)
        self._root, config = out / "checkpoints", engine.model.description()
        self.checkpoints = Checkpoints(self._root, settings.keep_checkpoints, config, settings.async_checkpoints)
        self.guard = Guard()
        self.done, self.tokens = 0, 0
        self.best: float | None = None
        self.best_step = 0
        self.best_name = ""
        """The checkpoint that has the best weights."""
        self._due = False

    def train(self, title: str) -> None:
        """To the end, from where an earlier process has stopped. UserError if no update could be applied."""
        found = self.checkpoints.latest()
        if found is not None:
            self._resume(found)
        try:
            self._train(title)
        except BaseException:
            with contextlib.suppress(Exception):  # a checkpoint that is being written is not lost
                self.checkpoints.wait()
            raise
        self.checkpoints.wait()
        ranks.barrier()
        if not self.guard.seen:
            raise UserError(f"every one of the {self.steps} steps was skipped (see metrics.jsonl); lower optim.lr")

    def weights(self) -> dict[str, Tensor]:
        """After `train`: what was trained, the best or the last."""
        if self._best and self.best_step:
            try:
                found = read_weights(self._root / self.best_name)
            except UserError as error:
                say(f"keeping the last weights: {error}")
            else:
                if self.best_step != self.done:
                    say(f"taking the weights of step {self.best_step}, the best on held-out data")
                return found
        return read_weights(self._root / f"step-{self.done}")

    def _train(self, title: str) -> None:
        optim, steps = self.settings.optim, range(self.done, self.steps)
        schedule = make_schedule(optim, self.steps)
        if (rise := warmup_steps(optim, self.steps)) > self.steps:
            say(f"optim.warmup is {rise} steps of {self.steps}: the rate ends at {self.steps / rise:.0%} of optim.lr")
        updates = fit(self.engine, schedule, self.source, steps, optim.max_grad_norm, self.guard)
        log = MetricsLog(self.out / "metrics.jsonl", self.done) if ranks.is_main() else None
        with (
            runtime.deferred_interrupt() as interrupted,
            ProgressLine(title, self.steps, self.done) as bar,
            contextlib.closing(log) if log else contextlib.nullcontext(),
            contextlib.closing(updates),
        ):
            self.speed.begin()
            for step, metrics in updates:
                row = self._count(step, metrics)
                last = self.done == self.steps
                better = False
                if self._evaluate and (last or self.done % self.settings.heldout_every == 0):
                    measured = self._evaluate()
                    better = self._is_best(measured)
                    row |= measured
                if log:
                    log.write(row)
                bar.update(self.done, f"loss {row['loss']:.3f} {self.speed.text()}")
                stop = ranks.any_of(interrupted())
                due = self._is_due(stop)
                if log and due:  # a checkpoint must not know of steps that the log has lost
                    log.flush()
                self._save(better, due)
                if due and stop and not last:
                    raise KeyboardInterrupt
                self.speed.begin()

    def _count(self, step: int, metrics: Metrics) -> Metrics:
        """Record a step; returns its row of the log."""
        self.done, self.tokens = step + 1, self.tokens + metrics.pop("tokens")
        if "skipped" not in metrics and self.guard.seen == min(_WATCHED, self.steps):
            self._name_untouched()
        if "skipped" not in metrics and self._after_step:
            self._after_step(metrics)
        elif "skipped" in metrics and ranks.is_main():
            logging.getLogger(__name__).warning("step %d skipped: %s", self.done, metrics["skipped"])
        return {"step": self.done, **metrics, "tokens": self.tokens, "tokens_per_second": self.speed.step()}

    def _name_untouched(self) -> None:
        """Say which weights are not trained although they should be: a mistake in the model or the recipe."""
        if names := self.engine.untouched():
            say(f"  no gradient has reached {by_pattern(names)} in {self.guard.seen} steps: they are not trained")

    def _is_best(self, measured: Metrics) -> bool:
        """Whether the present weights are the best so far, which is noted. What was not measured is never best."""
        if self._best is None:
            return False
        value, lower = measured[self._best[0]], self._best[1] == "min"
        if not math.isfinite(value) or not (self.best is None or (value < self.best if lower else value > self.best)):
            return False
        self.best, self.best_step = value, self.done
        return True

    def _is_due(self, stop: bool) -> bool:
        """Whether it is time for a checkpoint; it is put off to the next step after which the source allows one."""
        last = self.done == self.steps
        self._due = self._due or last or stop or self.done % self.settings.checkpoint_every == 0
        if not self._due or not (last or self.source.whole(self.done - 1)):
            return False
        self._due = False
        return True

    def _save(self, better: bool, due: bool) -> None:
        """A checkpoint if one is due, which then stands for the best weights, too; else those alone if they are new."""
        name = f"step-{self.done}"
        if better:
            self.best_name = name if due else _BEST
        if due:
            state = {"guard": dataclasses.asdict(self.guard), "tokens": self.tokens}
            state |= {"best": self.best, "best_step": self.best_step, "best_name": self.best_name}
            tensors = self.engine.tensors() | _random_states()
            self.checkpoints.save(name, self.done, tensors, state, keep_too=self.best_name)
        elif better:
            weights = {name: t for name, t in self.engine.tensors().items() if name.startswith("model.")}
            self.checkpoints.save(_BEST, self.done, weights, {})

    def _resume(self, found: Saved) -> None:
        random_states = _random_states()
        self.engine.load(lambda tensors: self.checkpoints.load(found, tensors | random_states))
        for name, state in random_states.items():
            (torch.cuda.set_rng_state if name.startswith("rng.cuda.") else torch.set_rng_state)(state)
        self.done, self.tokens = found.step, found.state["tokens"]
        self.best, self.best_step = found.state["best"], found.state["best_step"]
        self.best_name = found.state["best_name"]
        self.guard = Guard(**found.state["guard"])
        count = sum(math.prod(shape) for name, shape in found.shapes.items() if name.startswith("model."))
        say(f"going on after step {self.done} with {format_count(count)} trained weights and their optimizer")


def _random_states() -> dict[str, Tensor]:
    """Of this rank's generators, in new tensors."""
    states = {f"rng.{ranks.rank()}": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states[f"rng.cuda.{ranks.rank()}"] = torch.cuda.get_rng_state()
    return states


class _Speed:
    """Tokens per second and model-FLOPs utilisation, from the time between `begin` and `step`."""

    def __init__(self, model: LanguageModel, settings: TrainingConfig):
        self._tokens = settings.batch_tokens
        peak = runtime.peak_flops(model.compute_dtype or torch.float32, runtime.pick_device()) * ranks.size()
        self._utilisation = model.flops_per_token(settings.seq_len / 2) / peak
        self._rate = 0.0
        self.begin()

    def begin(self) -> None:
        self._last = time.perf_counter()

    def step(self) -> float:
        now = self._tokens / (time.perf_counter() - self._last)
        self._rate = now if not self._rate else 0.9 * self._rate + 0.1 * now
        return round(now, 1)

    def text(self) -> str:
        return f"{format_count(self._rate)} tok/s, MFU {self._rate * self._utilisation:.0%}"
