"""What every training stage does around `fit`: resume, log, measure held-out loss, save, stop cleanly."""

import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Literal

import torch

from mengya import runtime
from mengya.data.packing import BatchSource, Packer, in_order
from mengya.errors import UserError
from mengya.metrics import MetricsLog, ProgressLine, format_count, say
from mengya.model.transformer import CausalLM, flops_per_token
from mengya.schema import Count, Natural, Positive, config
from mengya.train import checkpoint
from mengya.train.loop import Guard, fit, measure
from mengya.train.objectives import Objective
from mengya.train.optimizer import make_adamw
from mengya.train.schedule import make_schedule

_BEST = "best.safetensors"


@config
class Optim:
    """AdamW and its schedule."""

    lr: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup: float = 0.02
    """Share of all steps in which the rate rises."""
    decay: float = 0.2
    """Share of all steps in which a wsd schedule falls; cosine falls all the way."""
    min_lr: float = 0.1
    """Where the schedule ends, as a share of lr."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        for name in ("warmup", "decay", "min_lr", "weight_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)} must each be at least 0 and below 1, e.g. [0.9, 0.95]")


@config
class TrainingConfig:
    """The keys that all training stages share."""

    seq_len: Count = 512
    """Tokens in a packed row."""
    batch_tokens: Count = 4096
    """Tokens of one optimizer step, padding included."""
    micro_batch: Natural = 0
    """Rows in one forward pass; 0: all rows of a step at once. Smaller needs less memory."""
    epochs: Positive = 1.0
    """Passes over the data."""
    steps: Natural = 0
    """Optimizer steps; if set, instead of epochs."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the activations; weights stay float32. auto: bfloat16 where the hardware is fast at it."""
    compile: bool = True
    """Compile the layers; needs a C++ compiler on a CPU, and goes on without if there is none."""
    heldout_every: Count = 100
    """Steps between measurements of held-out loss."""
    heldout_rows: Count = 64
    """Rows of held-out data that are measured."""
    checkpoint_every: Count = 100
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept while training."""
    seed: Natural = 0
    optim: Optim = dataclasses.field(default_factory=Optim)

    def __post_init__(self) -> None:
        if self.batch_tokens % self.seq_len:
            better = -(-self.batch_tokens // self.seq_len) * self.seq_len
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is not a multiple of seq_len={self.seq_len}; try {better}"
            )

    @property
    def rows(self) -> int:
        """Rows in an optimizer step."""
        return self.batch_tokens // self.seq_len


def prepare_model(model: CausalLM, settings: TrainingConfig) -> tuple[CausalLM, bool]:
    """Move to the device, set the activations' type, compile the layers. Returns the model and whether it compiles."""
    if settings.seq_len > model.config.max_position_embeddings:
        raise UserError(
            f"seq_len={settings.seq_len} is longer than the model's context of "
            f"{model.config.max_position_embeddings}; lower it"
        )
    device = runtime.pick_device()
    model.to(device)
    model.model.compute_dtype = runtime.pick_dtype(settings.dtype, device)
    missing = runtime.compiler_missing(device)
    if settings.compile and missing:
        say(f"training uncompiled: {missing}")
    compiled = settings.compile and not missing
    if compiled:
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    return model, compiled


SCRATCH = ("checkpoints", "shards")
"""What only training needs; a stage deletes it once its artifact is whole."""


class Trainer:
    """One training run in one directory. `metrics.jsonl` and `checkpoints/` are its memory."""

    def __init__(self, model: CausalLM, objective: Objective, settings: TrainingConfig, train: Packer, out: Path):
        self.model, self.objective, self.settings, self.out = model, objective, settings, out
        optim = settings.optim
        self.optimizer = make_adamw(model, optim.lr, optim.betas, optim.eps, optim.weight_decay)
        self.source = BatchSource(train, settings.rows, settings.micro_batch or settings.rows, settings.seed)
        self.steps = settings.steps or self.source.steps(settings.epochs)
        self.guard = Guard()
        self.done, self.tokens = 0, 0
        self.best: float | None = None

    def run(self, heldout: Packer, title: str, bytes_per_token: float | None = None) -> None:
        """Train to the end and leave the best weights (by held-out loss) in the model.

        `bytes_per_token`: of the held-out text, to log bits per byte as well.
        """
        root = self.out / "checkpoints"
        root.mkdir(exist_ok=True)
        self._resume(root)
        settings, optim = self.settings, self.settings.optim
        schedule = make_schedule(optim.schedule, self.steps, optim.warmup, optim.decay, optim.min_lr)
        log = MetricsLog(self.out / "metrics.jsonl", self.done)
        speed = _Speed(self.model, settings)
        with runtime.deferred_interrupt() as stop, ProgressLine(title, self.steps, self.done) as bar:
            updates = fit(
                self.model,
                self.objective,
                self.optimizer,
                schedule,
                self.source,
                range(self.done, self.steps),
                optim.max_grad_norm,
                self.guard,
            )
            for step, metrics in updates:
                self.done, self.tokens = step + 1, self.tokens + int(metrics.pop("tokens"))
                row = {"step": self.done, **metrics, "tokens": self.tokens, "tokens_per_second": speed.step()}
                if "skipped" in metrics:
                    logging.getLogger(__name__).warning("step %d skipped: %s", self.done, metrics["skipped"])
                last = self.done == self.steps
                if last or self.done % settings.heldout_every == 0:
                    row["heldout_loss"] = heldout_loss = self._measure(heldout, root)
                    if bytes_per_token:
                        row["heldout_bits_per_byte"] = heldout_loss / math.log(2) / bytes_per_token
                log.write(row)
                bar.update(self.done, f"loss {row['loss']:.3f} {speed.text()}")
                if last or self.done % settings.checkpoint_every == 0 or stop():
                    self._save(root)
                if stop() and not last:
                    log.close()
                    raise KeyboardInterrupt
                speed.begin()
        log.close()
        if not self.guard.seen:
            raise UserError(f"every one of the {self.steps} steps was skipped (see metrics.jsonl); lower optim.lr")
        self._take_best(root)

    def _measure(self, heldout: Packer, root: Path) -> float:
        rows = self.settings.micro_batch or self.settings.rows
        loss = measure(self.model, self.objective, in_order(heldout, rows, self.settings.heldout_rows))
        if math.isfinite(loss) and (self.best is None or loss < self.best):
            self.best = loss
            weights = checkpoint.capture(self.model, self.optimizer, self.done, {})
            weights.tensors = {name: t for name, t in weights.tensors.items() if name.startswith("model.")}
            checkpoint.save(weights, root / _BEST)
        return loss

    def _save(self, root: Path) -> None:
        state = {"guard": dataclasses.asdict(self.guard), "best": self.best, "tokens": self.tokens}
        captured = checkpoint.capture(self.model, self.optimizer, self.done, state)
        checkpoint.save(captured, root / f"step-{self.done}.safetensors")
        checkpoint.rotate(root, self.settings.keep_checkpoints)

    def _resume(self, root: Path) -> None:
        found = checkpoint.load_latest(root)
        if found is None:
            return
        checkpoint.restore(found, self.model, self.optimizer)
        self.done, self.tokens, self.best = found.step, found.state["tokens"], found.state["best"]
        self.guard = Guard(**found.state["guard"])
        say(f"going on after step {self.done}")

    def _take_best(self, root: Path) -> None:
        try:
            best = checkpoint.load(root / _BEST)
        except UserError as error:
            say(f"keeping the last weights: {error}")
            return
        if best.step != self.done:
            say(f"taking the weights of step {best.step}, the best on held-out data")
            checkpoint.restore_weights(best, self.model)


class _Speed:
    """Tokens per second and model-FLOPs utilisation, from the time between `begin` and `step`."""

    def __init__(self, model: CausalLM, settings: TrainingConfig):
        self._tokens = settings.batch_tokens
        device = runtime.pick_device()
        dtype = model.model.compute_dtype or torch.float32
        self._utilisation = flops_per_token(model.config, settings.seq_len / 2) / runtime.peak_flops(dtype, device)
        self._rate = 0.0
        self.begin()

    def begin(self) -> None:
        self._last = time.perf_counter()

    def step(self) -> float:
        now = self._tokens / (time.perf_counter() - self._last)
        self._rate = now if not self._rate else 0.9 * self._rate + 0.1 * now
        return round(now, 1)

    def text(self) -> str:
        return f"{format_count(self._rate)} tok/s, MFU {self._rate * self._utilisation:.0%},"
