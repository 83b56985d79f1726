"""A model and conversations -> a chat model."""

from functools import partial
from pathlib import Path

from mengya import ranks
from mengya.data.conversations import read_conversations
from mengya.data.mixture import HeldoutPart
from mengya.data.packing import PackedGroups
from mengya.data.quarantine import Quarantine
from mengya.data.shards import Shards
from mengya.data.tokenization import write_conversation_shards
from mengya.metrics import say
from mengya.model.load import load_model
from mengya.schema import InputPath, InputPaths, Share, config
from mengya.text.tokenizer import Tokenizer
from mengya.train.objectives import language_modeling
from mengya.train.run import SCRATCH, train_model
from mengya.train.settings import TrainingConfig

RESUMABLE = DISTRIBUTED = True
__all__ = ["DISTRIBUTED", "RESUMABLE", "SCRATCH", "Config", "run"]


@config
class Config(TrainingConfig):
    """Supervised fine-tuning."""

    model: InputPath = "@pretrain"
    path: InputPaths
    """Conversations: messages, ShareGPT, alpaca, prompt/response, lists; mixed files are fine."""
    heldout: Share = 0.02
    """Share of the conversations to measure held-out loss on; chosen by content."""


def _write_shards(config: Config, inputs: dict[str, list[Path]], tokenizer: Tokenizer, out: Path) -> list[Path]:
    train, heldout = out / "shards" / "train", out / "shards" / "heldout"
    if not all((split / "shards.json").exists() for split in (train, heldout)):
        with Quarantine(out / "quarantine.jsonl") as quarantine:
            conversations = read_conversations([str(path) for path in inputs["path"]], quarantine)
            used, kept = write_conversation_shards(conversations, tokenizer, train, heldout, config.heldout)
        say(f"  {used['documents']:,} conversations to train on, {kept['documents']:,} held out")
        say(f"  {quarantine.summary()}")
    return [train, heldout]


def run(config: Config, inputs: dict[str, list[Path]], out: Path) -> None:
    """Write a model directory and metrics.jsonl."""
    (base,) = inputs["model"]
    tokenizer = Tokenizer.load(base)
    splits = [Shards(path) for path in ranks.on_main(lambda: _write_shards(config, inputs, tokenizer, out))]
    train, heldout = (PackedGroups(shards, config.seq_len, tokenizer.eos_id, config.seed) for shards in splits)
    parts, stops = [HeldoutPart("heldout", heldout)], sorted(tokenizer.stop_ids)
    objective, rebuild = language_modeling(config.balance), partial(load_model, base)
    train_model(rebuild(), rebuild, objective, config, train, parts, out, tokenizer, stops)
