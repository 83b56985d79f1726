"""What every training stage does around `fit`: resume, log, measure held-out loss, save, stop cleanly."""

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch

from mengya import ranks, runtime
from mengya.data.mixture import HeldoutPart, heldout_metrics
from mengya.data.packing import BatchSource, Packer, in_order, rows_per_rank
from mengya.errors import UserError
from mengya.metrics import MetricsLog, ProgressLine, format_count, say
from mengya.model.load import assemble
from mengya.model.native.transformer import CausalLM, flops_per_token
from mengya.schema import HOW, Count, Natural, Positive, config
from mengya.train.balance import Balance
from mengya.train.checkpoint import Checkpoints, read_weights
from mengya.train.engines.deepspeed import Zero, read_settings, wanted_values
from mengya.train.loop import Guard, Metrics, fit, measure
from mengya.train.objectives import Objective
from mengya.train.optimizer import make_adamw
from mengya.train.parallel import Engine, Replicated, Sharded
from mengya.train.schedule import make_schedule

_BEST = "best"


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
class Fsdp:
    """How parallel = "fsdp" divides the model among the ranks."""

    reshard_after_forward: bool = True
    """Give the gathered weights of a layer back after its forward pass (ZeRO-3): less memory; false: ZeRO-2."""
    cpu_offload: bool = False
    """Keep weights, gradients and the optimizer in host memory."""


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
    activation_checkpointing: Annotated[bool, HOW] = False
    """Keep a layer's input alone and compute the rest again for its gradient: less memory, a third more work."""
    heldout_every: Count = 100
    """Steps between measurements of held-out loss."""
    heldout_rows: Count = 64
    """Rows of held-out data that are measured."""
    checkpoint_every: Count = 100
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept while training."""
    async_checkpoints: Annotated[bool, HOW] = True
    """Write checkpoints while training goes on; needs host memory for a copy of one."""
    parallel: Annotated[Literal["auto", "ddp", "fsdp", "deepspeed"], HOW] = "auto"
    """Engine for several processes, started with torchrun. auto: ddp there, otherwise this process alone."""
    fsdp: Annotated[Fsdp, HOW] = dataclasses.field(default_factory=Fsdp)
    deepspeed: Annotated[str, HOW] = ""
    """The ds.json of parallel = "deepspeed"."""
    seed: Natural = 0
    optim: Optim = dataclasses.field(default_factory=Optim)
    balance: Balance = dataclasses.field(default_factory=Balance)

    def __post_init__(self) -> None:
        if self.batch_tokens % self.seq_len:
            better = -(-self.batch_tokens // self.seq_len) * self.seq_len
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is not a multiple of seq_len={self.seq_len}; try {better}"
            )

        if (self.parallel == "deepspeed") != bool(self.deepspeed):
            raise ValueError(
                f"parallel={self.parallel!r} and deepspeed={self.deepspeed!r} do not fit; DeepSpeed needs both: "
                'parallel = "deepspeed" and deepspeed = "ds.json"'
            )
        if self.parallel != "fsdp" and self.fsdp != Fsdp():
            raise ValueError(f'parallel={self.parallel!r} does not use the table fsdp; set parallel = "fsdp"')

    @property
    def rows(self) -> int:
        """Rows in an optimizer step."""
        return self.batch_tokens // self.seq_len

    def check(self) -> None:
        """UserError if the ranks that there are cannot train so. Called before any stage runs."""
        if self.parallel != "auto" and not ranks.launched():
            raise UserError(
                f'parallel = "{self.parallel}" trains in several processes; start them with '
                'torchrun --nproc-per-node 2 -m mengya run …, or set parallel = "auto"'
            )
        rows_per_rank(self.rows, self.micro_batch, ranks.size())
        if self.parallel == "deepspeed":
            deepspeed_settings(self)


def prepare_model(model: CausalLM, settings: TrainingConfig) -> tuple[CausalLM, bool]:
    """Move to the device, set the activations' type, compile the layers; on a CPU, set the process's allocator.

    Returns the model and whether it compiles.
    """
    if settings.seq_len > model.config.max_position_embeddings:
        raise UserError(
            f"seq_len={settings.seq_len} is longer than the model's context of "
            f"{model.config.max_position_embeddings}; lower it"
        )
    device = runtime.pick_device()
    if device == "cpu":
        runtime.keep_freed_memory()
    if not (ranks.launched() and settings.parallel in ("fsdp", "deepspeed")):  # which move it part by part
        model.to(device)
    model.model.compute_dtype = runtime.pick_dtype(settings.dtype, device)
    model.model.activation_checkpointing = settings.activation_checkpointing
    missing = runtime.compiler_missing(device)
    if settings.compile and missing:
        say(f"training uncompiled: {missing}")
    compiled = settings.compile and not missing
    if compiled:
        for module in (*model.model.layers, model.model.norm):  # forward passes alone: engines' hooks stay outside
            module.forward = torch.compile(module.forward, dynamic=False)
    return model, compiled


def deepspeed_settings(settings: TrainingConfig) -> dict:
    """The user's ds.json, completed from the recipe. UserError if they contradict each other."""
    o, share = settings.optim, settings.rows // ranks.size()
    wanted = wanted_values(
        rows=settings.rows,
        rows_per_batch=min(settings.micro_batch or share, share),
        steps=settings.steps,
        half=runtime.pick_dtype(settings.dtype, runtime.pick_device()) == torch.bfloat16,
        schedule=o.schedule,
        warmup=o.warmup,
        adamw={"lr": o.lr, "betas": list(o.betas), "eps": o.eps, "weight_decay": o.weight_decay},
        clip=o.max_grad_norm,
    )
    return read_settings(Path(settings.deepspeed).expanduser(), wanted)


def make_engine(model: CausalLM, objective: Objective, settings: TrainingConfig) -> Engine:
    """The engine that the settings name, around a model from `prepare_model`."""
    o = settings.optim
    adamw = functools.partial(make_adamw, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    if not ranks.launched():
        return Engine(model, objective, adamw)
    device = torch.device(runtime.pick_device())
    if settings.parallel == "fsdp":
        fsdp = settings.fsdp
        return Sharded(model, objective, adamw, device, fsdp.reshard_after_forward, fsdp.cpu_offload)
    if settings.parallel == "deepspeed":
        return Zero(model, objective, adamw, device, deepspeed_settings(settings))
    return Replicated(model, objective, adamw)


SCRATCH = ("checkpoints", "shards")
"""What only training needs; a stage deletes it once its artifact is whole."""


class Trainer:
    """One training run in one directory, on all ranks. `metrics.jsonl` and `checkpoints/` are its memory."""

    def __init__(
        self,
        model: CausalLM,
        objective: Objective,
        settings: TrainingConfig,
        train: Packer,
        out: Path,
        after_step: Callable[[Metrics], None] | None = None,
    ):
        """`after_step` is called with the metrics of each step whose update was applied, on all ranks."""
        self.settings, self.out, self.after_step = settings, out, after_step
        torch.manual_seed(settings.seed + ranks.rank())
        self.speed = _Speed(model, settings)
        self.engine = make_engine(model, objective, settings)
        self.source = BatchSource(train, settings.rows, settings.micro_batch, settings.seed, ranks.rank(), ranks.size())
        self.steps = settings.steps or self.source.steps(settings.epochs)
        root = out / "checkpoints"
        self.checkpoints = Checkpoints(root, settings.keep_checkpoints, model.config, settings.async_checkpoints)
        self.guard = Guard()
        self.done, self.tokens = 0, 0
        self.best: float | None = None
        self.best_step = 0

    def run(self, heldout: Packer | list[HeldoutPart], title: str) -> CausalLM | None:
        """Train to the end. Rank 0 gets a plain model on the CPU with the best weights (by held-out loss), others None.

        Held-out loss is that of all parts, by their shares; each of several parts is logged by itself as well.
        """
        self._resume()
        try:
            self._train(heldout if isinstance(heldout, list) else [HeldoutPart("heldout", heldout)], title)
        except BaseException:
            with contextlib.suppress(Exception):  # a checkpoint that is being written is not lost
                self.checkpoints.wait()
            raise
        self.checkpoints.wait()
        ranks.barrier()
        if not self.guard.seen:
            raise UserError(f"every one of the {self.steps} steps was skipped (see metrics.jsonl); lower optim.lr")
        return self._best() if ranks.is_main() else None

    def _train(self, parts: list[HeldoutPart], title: str) -> None:
        settings, optim = self.settings, self.settings.optim
        schedule = make_schedule(optim.schedule, self.steps, optim.warmup, optim.decay, optim.min_lr)
        steps = range(self.done, self.steps)
        updates = fit(self.engine, schedule, self.source, steps, optim.max_grad_norm, self.guard)
        log = MetricsLog(self.out / "metrics.jsonl", self.done) if ranks.is_main() else None
        with (
            runtime.deferred_interrupt() as asked,
            ProgressLine(title, self.steps, self.done) as bar,
            contextlib.closing(log) if log else contextlib.nullcontext(),
            contextlib.closing(updates),
        ):
            self.speed.begin()
            for step, metrics in updates:
                row = self._count(step, metrics)
                last = self.done == self.steps
                if last or self.done % settings.heldout_every == 0:
                    row |= self._measure(parts)
                if log:
                    log.write(row)
                bar.update(self.done, f"loss {row['loss']:.3f} {self.speed.text()}")
                stop = ranks.any_of(asked())
                if last or self.done % settings.checkpoint_every == 0 or stop:
                    self._save()
                if stop and not last:
                    raise KeyboardInterrupt
                self.speed.begin()

    def _count(self, step: int, metrics: Metrics) -> Metrics:
        """Take note of a step; returns its row of the log."""
        self.done, self.tokens = step + 1, self.tokens + metrics.pop("tokens")
        if "skipped" not in metrics and self.after_step:
            self.after_step(metrics)
        elif "skipped" in metrics and ranks.is_main():
            logging.getLogger(__name__).warning("step %d skipped: %s", self.done, metrics["skipped"])
        return {"step": self.done, **metrics, "tokens": self.tokens, "tokens_per_second": self.speed.step()}

    def _measure(self, parts: list[HeldoutPart]) -> Metrics:
        rows, most, share = self.source.rows_per_batch, self.settings.heldout_rows, (ranks.rank(), ranks.size())
        losses = [measure(self.engine, in_order(part.packer, rows, most, *share)) for part in parts]
        found = heldout_metrics(parts, losses)
        loss = found["heldout_loss"]
        if math.isfinite(loss) and (self.best is None or loss < self.best):
            self.best, self.best_step = loss, self.done
            weights = {name: t for name, t in self.engine.tensors().items() if name.startswith("model.")}
            self.checkpoints.save(_BEST, self.done, weights, {"heldout_loss": loss})
        return found

    def _save(self) -> None:
        state = {"guard": dataclasses.asdict(self.guard), "tokens": self.tokens}
        state |= {"best": self.best, "best_step": self.best_step}
        tensors = self.engine.tensors() | {f"rng.{ranks.rank()}": torch.get_rng_state()}
        self.checkpoints.save(f"step-{self.done}", self.done, tensors, state)

    def _resume(self) -> None:
        found = self.checkpoints.latest()
        if found is None:
            return
        tensors, random_state = self.engine.places(), torch.get_rng_state()
        self.checkpoints.load(found, tensors | {f"rng.{ranks.rank()}": random_state})
        self.engine.restore(tensors)
        torch.set_rng_state(random_state)
        self.done, self.tokens = found.step, found.state["tokens"]
        self.best, self.best_step = found.state["best"], found.state["best_step"]
        self.guard = Guard(**found.state["guard"])
        say(f"going on after step {self.done}")

    def _best(self) -> CausalLM:
        root = self.out / "checkpoints"
        try:
            weights = read_weights(root / _BEST)
            if self.best_step != self.done:
                say(f"taking the weights of step {self.best_step}, the best on held-out data")
        except UserError as error:
            say(f"keeping the last weights: {error}")
            weights = read_weights(root / f"step-{self.done}")
        return assemble(self.engine.model.config, weights)


class _Speed:
    """Tokens per second and model-FLOPs utilisation, from the time between `begin` and `step`."""

    def __init__(self, model: CausalLM, settings: TrainingConfig):
        self._tokens = settings.batch_tokens
        device = runtime.pick_device()
        dtype = model.model.compute_dtype or torch.float32
        peak = runtime.peak_flops(dtype, device) * ranks.size()
        self._utilisation = flops_per_token(model.config, settings.seq_len / 2) / peak
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
