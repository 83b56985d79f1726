"""Token shards -> a base model."""

from pathlib import Path

import torch

from mengya.data.packing import PackedText
from mengya.data.shards import Shards
from mengya.metrics import format_count, say
from mengya.model.config import ModelConfig
from mengya.model.load import save_model
from mengya.model.transformer import CausalLM, count_parameters
from mengya.schema import InputPath, config
from mengya.text.tokenizer import Tokenizer
from mengya.train.objectives import language_modeling
from mengya.train.training import SCRATCH, Trainer, TrainingConfig, prepare_model

RESUMABLE = True
__all__ = ["RESUMABLE", "SCRATCH", "Config", "run"]


@config
class Config(TrainingConfig):
    """Pretrain a dense model from scratch."""

    shards: InputPath = "@tokenize"
    model: ModelConfig


def run(config: Config, inputs: dict[str, list[Path]], out: Path) -> None:
    """Write a model directory and metrics.jsonl."""
    (shards,) = inputs["shards"]
    tokenizer = Tokenizer.load(shards)
    shape = config.model.for_tokenizer(tokenizer.vocab_size)
    model = CausalLM(shape)
    model.initialize(torch.Generator().manual_seed(config.seed))
    say(f"  {format_count(count_parameters(shape))} parameters")
    model, compiled = prepare_model(model, config)
    splits = [Shards(shards / split) for split in ("train", "heldout")]
    train, heldout = (PackedText(split, config.seq_len, tokenizer.eos_id, config.seed) for split in splits)
    counts = splits[1].meta  # one separator is predicted for each document
    bytes_per_token = counts["bytes"] / (counts["tokens"] + counts["documents"])
    Trainer(model, language_modeling(compiled), config, train, out).run(heldout, "pretrain", bytes_per_token)
    save_model(model, out, None, [tokenizer.eos_id], tokenizer.eos_id)
    tokenizer.save(out)
