"""The keys that all training stages share, and what they make of a model."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from mengya import ranks, runtime
from mengya.data.packing import rows_per_rank
from mengya.errors import UserError
from mengya.metrics import say
from mengya.model.adapters import Lora
from mengya.model.language_model import LanguageModel
from mengya.model.load import Implementation
from mengya.schema import HOW, Count, Natural, Positive, config
from mengya.train import balance
from mengya.train.balance import Balance
from mengya.train.engines.ddp import Replicated
from mengya.train.engines.deepspeed import Zero, read_settings, wanted_values
from mengya.train.engines.fsdp import Fsdp, Sharded
from mengya.train.engines.single import Engine
from mengya.train.objectives import Objective
from mengya.train.optimizer import Optim, freeze, parameter_groups

TOKENS_AT_ONCE = 2048
"""In one forward pass in float32 on a CPU: what a layer makes of more does not stay in the cache (docs/LOG.md)."""


@config
class TrainingConfig:
    """The keys that all training stages share."""

    seq_len: Count = 512
    """Tokens in a packed row."""
    batch_tokens: Count = 4096
    """Tokens of one optimizer step, padding included."""
    micro_batch: Annotated[Natural, HOW] = 0
    """Rows in one forward pass; smaller needs less memory. 0: all rows of a step at once, but in float32 on a CPU about
    2,048 tokens."""
    epochs: Positive = 1.0
    """Passes over the data."""
    steps: Natural = 0
    """Optimizer steps; if set, instead of epochs."""
    freeze: list[str] = dataclasses.field(default_factory=list)
    """Weights that are not trained, by patterns of their names, e.g. ["*embed_tokens*"]; * stands for anything."""
    implementation: Implementation = "auto"
    """Whose code computes a model that is loaded: ours (native) or that of the transformers library. auto: ours for the
    families that it has, which is faster, and the library's for all others."""
    trust_remote_code: bool = False
    """Run the code that comes with a model whose architecture nobody else has (auto_map). Read it before."""
    lora: Lora | None = None
    """Train an adapter of a loaded model instead of its weights."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the activations; weights stay float32. auto: bfloat16 where the hardware is fast at it."""
    compile: Annotated[bool, HOW] = True
    """Compile the layers; needs a C++ compiler on a CPU, and goes on without if there is none."""
    activation_checkpointing: Annotated[bool, HOW] = False
    """Keep a layer's input alone and compute the rest again for its gradient: less memory, a third more work."""
    heldout_every: Annotated[Count, HOW] = 100
    """Steps between measurements of held-out loss."""
    heldout_rows: Count = 64
    """Rows of held-out data that are measured."""
    checkpoint_every: Annotated[Count, HOW] = 100
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[Count, HOW] = 2
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
        if self.parallel == "deepspeed" and self.optim.name == "muon":
            raise ValueError(
                "DeepSpeed divides matrices, which Muon needs whole; "
                'set parallel to "ddp" or "fsdp", or optim.name = "adamw"'
            )
        if self.parallel != "fsdp" and self.fsdp != Fsdp():
            raise ValueError(f'parallel={self.parallel!r} does not use the table fsdp; set parallel = "fsdp"')

    @property
    def loading(self) -> dict[str, Any]:
        """How models are loaded, as arguments of `load_model` and `outline`."""
        return {"implementation": self.implementation, "trust_remote_code": self.trust_remote_code}

    @property
    def rows(self) -> int:
        """Rows in an optimizer step."""
        return self.batch_tokens // self.seq_len

    def rows_at_once(self, processes: int, device: str | None = None) -> int:
        """Rows in one forward pass of each process on `device` (none: the one that is here). UserError if the rows of a
        step cannot be divided so."""
        share = rows_per_rank(self.rows, self.micro_batch, processes)
        if self.micro_batch:
            return min(self.micro_batch, share)
        device = device or runtime.pick_device()
        if device != "cpu" or runtime.pick_dtype(self.dtype, device) != torch.float32:
            return share
        return max(
            rows
            for rows in range(1, share + 1)
            if share % rows == 0 and (rows == 1 or rows * self.seq_len <= TOKENS_AT_ONCE)
        )

    def check(self) -> None:
        """UserError if these ranks cannot train so, or lack a library. Called before any stage runs."""
        if self.parallel != "auto" and not ranks.launched():
            raise UserError(
                f'parallel = "{self.parallel}" trains in several processes; write '
                'torchrun --nproc-per-node 2 -m mengya run in place of mengya run, or set parallel = "auto"'
            )
        self.rows_at_once(ranks.size())
        if self.parallel == "deepspeed":
            deepspeed_settings(self)


def deepspeed_settings(settings: TrainingConfig) -> dict:
    """The user's ds.json, completed from the recipe. UserError if they contradict each other."""
    half = runtime.pick_dtype(settings.dtype, runtime.pick_device()) == torch.bfloat16
    wanted = wanted_values(settings.rows, settings.rows_at_once(ranks.size()), settings.steps, half, settings.optim)
    return read_settings(Path(settings.deepspeed).expanduser(), wanted)


def check_context(settings: TrainingConfig, model: LanguageModel) -> None:
    """UserError if the rows are longer than the model's context."""
    if settings.seq_len > model.context:
        raise UserError(f"seq_len={settings.seq_len} is longer than the model's context of {model.context}; lower it")


def _check_names(settings: TrainingConfig, model: LanguageModel) -> None:
    freeze(model, settings.freeze)
    parameter_groups(model, settings.optim)


def _check_balance(settings: TrainingConfig, model: LanguageModel) -> None:
    balance.after_step(model, settings.balance)


MODEL_CHECKS = (check_context, _check_names, _check_balance)
"""Each raises UserError if a model, which may lack weights and is spoilt, cannot be trained with the settings."""


def prepare_model(model: LanguageModel, settings: TrainingConfig) -> LanguageModel:
    """Move to the device, set the activations' type, compile the blocks; on a CPU, set the process's allocator.

    Returns the model. UserError if its context is too short.
    """
    check_context(settings, model)
    device = runtime.pick_device()
    if device == "cpu":
        runtime.keep_freed_memory()
    if not (ranks.launched() and settings.parallel in ("fsdp", "deepspeed")):  # which move it part by part
        model.to(device)
    model.compute_dtype = runtime.pick_dtype(settings.dtype, device)
    if settings.compile:
        missing = runtime.compiler_missing(device)
        if missing:
            say(f"training uncompiled: {missing}")
        else:
            model.compile_blocks()
    if settings.activation_checkpointing:
        model.recompute_blocks()
    if not any(parameter.requires_grad for parameter in model.parameters()):  # the reference of preference training
        model.detach_blocks()
    return model


def engine_for(model: LanguageModel, objective: Objective, settings: TrainingConfig) -> Engine:
    """The engine that the settings name, around a model from `prepare_model`."""
    optim, device = settings.optim, torch.device(runtime.pick_device())
    if not ranks.launched():
        return Engine(model, objective, optim)
    if settings.parallel == "fsdp":
        return Sharded(model, objective, optim, device, settings.fsdp)
    if settings.parallel == "deepspeed":
        return Zero(model, objective, optim, device, deepspeed_settings(settings))
    return Replicated(model, objective, optim)
