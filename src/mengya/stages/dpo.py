"""A chat model and preference pairs -> a model that prefers the chosen answers."""

from functools import partial
from pathlib import Path

from mengya import ranks, runtime
from mengya.data.mixture import HeldoutPart
from mengya.data.packing import PackedGroups
from mengya.data.preferences import read_preferences
from mengya.data.quarantine import Quarantine
from mengya.data.shards import Shards
from mengya.data.tokenization import write_preference_shards
from mengya.metrics import say
from mengya.model.load import load_model
from mengya.schema import InputPath, InputPaths, Positive, Share, config
from mengya.text.tokenizer import Tokenizer
from mengya.train.objectives import dpo
from mengya.train.run import SCRATCH, train_model
from mengya.train.settings import TrainingConfig, prepare_model

RESUMABLE = DISTRIBUTED = True
__all__ = ["DISTRIBUTED", "RESUMABLE", "SCRATCH", "Config", "run"]


@config
class Config(TrainingConfig):
    """Direct preference optimisation against the model it starts from."""

    model: InputPath = "@sft"
    path: InputPaths
    """Preference pairs: prompt/chosen/rejected as strings or messages, ranked answers."""
    heldout: Share = 0.05
    """Share of the pairs to measure held-out loss on; chosen by content."""
    beta: Positive = 0.1
    """How strongly the policy is held to the reference."""


def _write_shards(config: Config, inputs: dict[str, list[Path]], tokenizer: Tokenizer, out: Path) -> list[Path]:
    train, heldout = out / "shards" / "train", out / "shards" / "heldout"
    if not all((split / "shards.json").exists() for split in (train, heldout)):
        with Quarantine(out / "quarantine.jsonl") as quarantine:
            pairs = read_preferences([str(path) for path in inputs["path"]], quarantine)
            used, kept, long = write_preference_shards(pairs, tokenizer, train, heldout, config.heldout, config.seq_len)
        say(f"  {used['documents'] // 2:,} pairs to train on, {kept['documents'] // 2:,} held out, {long:,} too long")
        say(f"  {quarantine.summary()}")
    return [train, heldout]


def run(config: Config, inputs: dict[str, list[Path]], out: Path) -> None:
    """Write a model directory and metrics.jsonl."""
    (base,) = inputs["model"]
    tokenizer = Tokenizer.load(base)
    splits = [Shards(path) for path in ranks.on_main(lambda: _write_shards(config, inputs, tokenizer, out))]
    reference = prepare_model(load_model(base).requires_grad_(False), config)
    reference.to(runtime.pick_device())  # whole on every rank
    train, heldout = (PackedGroups(shards, config.seq_len, tokenizer.eos_id, config.seed, 2) for shards in splits)
    parts, stops = [HeldoutPart("heldout", heldout)], sorted(tokenizer.stop_ids)
    objective, rebuild = dpo(config.beta, reference, config.balance), partial(load_model, base)
    train_model(rebuild(), rebuild, objective, config, train, parts, out, tokenizer, stops)
