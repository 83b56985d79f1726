"""Training runs that test_engines.py compares; as a script, one of two ranks: `python engines.py FOLDER`.

The environment holds torchrun's variables. Every run leaves `metrics.jsonl`; rank 0 leaves the best weights beside it.
"""

import json
import os
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mengya import ranks, runtime
from mengya.batch import Loss, Metric
from mengya.data.mixture import HeldoutPart
from mengya.data.packing import BatchSource, PackedGroups
from mengya.data.shards import Shards, ShardWriter
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM
from mengya.train.engines.fsdp import Fsdp
from mengya.train.objectives import dpo, language_modeling
from mengya.train.optimizer import Optim, ParameterGroup, freeze
from mengya.train.run import Run, heldout_loss
from mengya.train.settings import TrainingConfig, engine_for, prepare_model

VOCABULARY, STEPS = 50, 9
ENGINES = {
    "ddp": {"parallel": "ddp"},
    "fsdp": {"parallel": "fsdp"},
    "fsdp-zero2": {"parallel": "fsdp", "fsdp": Fsdp(reshard_after_forward=False)},
    "fsdp-offload": {"parallel": "fsdp", "fsdp": Fsdp(cpu_offload=True)},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero2-offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "zero3": {"stage": 3},
    "zero3-offload": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
}
CHAIN = ["zero3", "fsdp", "zero2", "ddp", "zero3-offload", "fsdp-offload", "zero1"]
"""Each goes on for a step where the one before stopped; one process takes the first and the last."""


class Stop(Exception):
    pass


def write_shards(folder: Path) -> None:
    """Documents whose supervised parts differ much, so that ranks and micro-batches have unequal counts."""
    rng = np.random.default_rng(0)
    for name, lengths in (("train", rng.integers(3, 30, 60)), ("heldout", rng.integers(3, 30, 14))):
        with ShardWriter(folder / name, VOCABULARY, columns={"mask": "uint8"}) as writer:
            for length in lengths:
                share = rng.random()
                mask = (rng.random(length) < share).astype(int).tolist()
                writer.append(rng.integers(1, VOCABULARY, length).tolist(), mask=mask)


def build(tied: bool, seed: int = 0) -> CausalLM:
    model = CausalLM(
        ModelConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            initializer_range=0.2,
            tie_word_embeddings=tied,
        )
    )
    model.initialize(torch.Generator().manual_seed(seed))
    return model


def troubled(objective):
    """NaN on the last rank in the third step; in the sixth a spike, where all gradients are numbers."""
    calls = iter(range(10**6))

    def changed(model, batch):
        loss = objective(model, batch)
        if not torch.is_grad_enabled():
            return loss
        step = next(calls) // (4 // ranks.size())
        factor = {2: float("nan") if ranks.rank() == ranks.size() - 1 else 1.0, 5: 1e4}.get(step, 1.0)
        return Loss(loss.total * factor, loss.metrics)

    return changed


def counted(objective):
    """With a metric that has a divisor of its own, unequal on ranks and micro-batches."""

    def changed(model, batch):
        loss = objective(model, batch)
        return Loss(loss.total, {**loss.metrics, "per_sequence": Metric(loss.total.detach(), batch.sequences)})

    return changed


FROZEN = {
    "freeze": ["*embed_tokens*", "*layers.0.*"],
    "activation_checkpointing": True,
    "optim": Optim(
        lr=1e-2, groups=[ParameterGroup(pattern="*mlp*", lr=3e-3), ParameterGroup(pattern="*norm*", weight_decay=0.1)]
    ),
}

MUON, WITH_MUON = ("ddp", "fsdp", "fsdp-offload"), Optim(name="muon", lr=1e-2, schedule="wsd", warmup=2)


def train(folder: Path, name: str, engine: str | None, stop: int = STEPS, trouble=True, pairs=False, **settings):
    """Train in folder/name until after step `stop`; a run that is already there goes on."""
    out = folder / name
    out.mkdir(exist_ok=True)
    how = dict(ENGINES[engine]) if engine else {}
    if "stage" in how:
        path = out / f"ds-{ranks.rank()}.json"  # each its own: a rank must not read what another is writing
        path.write_text(json.dumps({"train_batch_size": "auto", "zero_optimization": how}))
        how = {"parallel": "deepspeed", "deepspeed": str(path)}
    values = {"seq_len": 64, "batch_tokens": 256, "micro_batch": 1, "steps": STEPS, "dtype": "float32"}
    values |= {"heldout_every": 4, "checkpoint_every": 3, "compile": False, "optim": Optim(lr=1e-2)}
    config = TrainingConfig(**(values | how | settings))
    config.check()
    group = 2 if pairs else 1
    train, heldout = (PackedGroups(Shards(folder / s), 64, 0, 0, group) for s in ("train", "heldout"))
    model = build(tied=not pairs)
    freeze(model, config.freeze)
    prepare_model(model, config)
    objective = dpo(0.5, build(False, 1).requires_grad_(False)) if pairs else language_modeling()

    def after_step(metrics) -> None:
        if run.done > stop:  # its checkpoint is not written any more
            raise Stop

    objective = counted(troubled(objective) if trouble else objective)
    used = engine_for(model, objective, config)
    source = BatchSource(train, config.rows, config.micro_batch, config.seed, ranks.rank(), ranks.size())
    parts = [HeldoutPart("heldout", heldout)]
    evaluate = partial(heldout_loss, used, parts, source.rows_per_batch, config.heldout_rows)
    run = Run(used, source, config.steps, out, config, after_step, evaluate, ("heldout_loss", "min"))
    run.guard.warmup = 3
    try:
        run.train(name)
    except Stop:
        return
    if ranks.is_main():
        save_file(run.weights(), out / "best.safetensors")


def chain(folder: Path) -> None:
    for number, engine in enumerate(CHAIN, 2):
        train(folder, "chain", engine, number, trouble=False, checkpoint_every=1)


def main(folder: Path) -> None:
    runtime.peak_flops = lambda dtype, device: 1e11  # its measurement takes a second
    with ranks.group():
        for engine in ENGINES:
            train(folder, engine, engine)
        for engine in ("fsdp", "zero3"):
            train(folder, f"{engine}-pairs", engine, trouble=False, pairs=True)
        for engine in MUON:
            train(folder, f"{engine}-muon", engine, 5, trouble=False, optim=WITH_MUON)
            train(folder, f"{engine}-muon", engine, trouble=False, optim=WITH_MUON)
        for engine in ("ddp", "fsdp", "zero2", "zero3"):
            train(folder, f"{engine}-frozen", engine, 5, trouble=False, **FROZEN)
            train(folder, f"{engine}-frozen", engine, trouble=False, **FROZEN)
        chain(folder)
        collectives()
    assert threading.active_count() < 40


def collectives() -> None:
    """What ranks.py promises."""
    assert ranks.size() == 2 and ranks.sum_of(1, ranks.rank()) == [2, 1]
    assert ranks.any_of(ranks.rank() == 1) and not ranks.any_of(False)
    assert ranks.on_main(lambda: {"rank": ranks.rank()}) == {"rank": 0}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
