"""Token shards -> a base model."""

import dataclasses
from pathlib import Path
from typing import Annotated

import torch

from mengya.data.mixture import HeldoutPart, Mixture, names_of, shares_of
from mengya.data.packing import PackedText, Packer
from mengya.data.shards import Shards
from mengya.errors import UserError
from mengya.metrics import format_count, say
from mengya.model.load import load_model, save_model
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM, count_active_parameters, count_parameters
from mengya.model.native.vocabulary import adopt_tokenizer
from mengya.schema import Input, config
from mengya.stage import Estimate, Inputs, Sources, Stage
from mengya.stages.estimates import shape_of, tokens_of_shards, vocab_size_of
from mengya.text.tokenizer import Tokenizer, read_backend
from mengya.train import balance
from mengya.train.estimate import estimate_training
from mengya.train.objectives import language_modeling
from mengya.train.training import SCRATCH, Trainer, TrainingConfig, prepare_model


@config
class Config(TrainingConfig):
    """Pretrain a model from scratch, or go on with one."""

    shards: Annotated[str | list[str], Input("shards")] = "@tokenize"
    """Token shards; or several, to be mixed, which were made with the same tokenizer."""
    mixture: list[float] | None = None
    """Share of the rows that comes from each of several shards, e.g. [0.3, 0.7]; unset: as large as they are. An epoch
    has as many rows as all shards together, so that a small one with a large share comes several times in it, in a new
    order each time."""
    init: Annotated[str, Input("model")] | None = None
    """A model directory to go on from, instead of the table model. The optimizer and its schedule begin anew: the rate
    rises to optim.lr again. If the shards' tokenizer was grown from the model's, the embedding grows with it."""
    model: ModelConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init is None and self.model is None:
            raise ValueError("there is no model: set the table model to begin one, or init to go on from a directory")
        if self.init is not None and self.model is not None:
            raise ValueError(f"init={self.init!r} has a shape of its own; remove it, or the table model")
        if self.model is not None:
            balance.check(self.model, self.balance)
        count = 1 if isinstance(self.shards, str) else len(self.shards)
        if self.mixture is not None and len(self.mixture) != count:
            raise ValueError(f"mixture={self.mixture} must have one weight for each of the {count} shards")
        if self.mixture is not None and min(self.mixture, default=1) <= 0:
            raise ValueError(f"mixture={self.mixture} must have weights greater than 0; leave out what is not wanted")


def _tokenizer(directories: list[Path]) -> Tokenizer:
    """The one that all shards were made with; UserError if there are several."""
    first, *others = directories
    content = read_backend(first).to_str()
    for other in others:
        if read_backend(other).to_str() != content:
            raise UserError(f"{first} and {other} were made with different tokenizers; tokenize both with the same one")
    return Tokenizer.load(first)


def _model(config: Config, inputs: Inputs, tokenizer: Tokenizer) -> CausalLM:
    """A new one, or the one to go on with."""
    if config.model is not None:
        model = CausalLM(config.model.for_tokenizer(tokenizer.vocab_size))
        model.initialize(torch.Generator().manual_seed(config.seed))
    else:
        (base,) = inputs["init"]
        model = load_model(base)
        try:
            balance.check(model.config, config.balance)
        except ValueError as error:
            raise UserError(f"{base}: {error}") from error
        grown = adopt_tokenizer(model, base, read_backend(inputs["shards"][0]))
        say(f"  going on from {base.name}" + (f" with {grown:,} more entries" if grown else ""))
    active = f", {format_count(count_active_parameters(model.config))} of them active" * (model.config.num_experts > 0)
    say(f"  {format_count(count_parameters(model.config))} parameters{active}")
    return model


def _text(shards: Path, split: str, config: Config, tokenizer: Tokenizer) -> tuple[PackedText, float]:
    """The rows of a split, and the bytes of text that a predicted token of it stands for."""
    found = Shards(shards / split)
    if not len(found):
        raise UserError(f"{shards / split} holds no document; give more text or a smaller held-out share")
    counts = found.meta  # one separator is predicted for each document
    bytes_per_token = counts["bytes"] / (counts["tokens"] + counts["documents"])
    return PackedText(found, config.seq_len, tokenizer.eos_id, config.seed), bytes_per_token


def _data(config: Config, directories: list[Path], tokenizer: Tokenizer) -> tuple[Packer, list[HeldoutPart]]:
    """The rows to train on, and the held-out text of each source."""
    sources = [_text(shards, "train", config, tokenizer)[0] for shards in directories]
    train: Packer = sources[0] if len(sources) == 1 else Mixture(sources, config.mixture, config.seed)
    shares = shares_of(config.mixture or [len(source) for source in sources])
    names = names_of([str(shards) for shards in directories])
    kept = [_text(shards, "heldout", config, tokenizer) for shards in directories]
    heldout = [
        HeldoutPart(n, packer, share, size) for n, share, (packer, size) in zip(names, shares, kept, strict=True)
    ]
    return train, heldout


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write a model directory and metrics.jsonl."""
    tokenizer = _tokenizer(inputs["shards"])
    train, heldout = _data(config, inputs["shards"], tokenizer)
    model, compiled = prepare_model(_model(config, inputs, tokenizer), config)
    after_step = balance.after_step(model, config.balance)
    trainer = Trainer(model, language_modeling(compiled, config.balance), config, train, out, after_step)
    best = trainer.run(heldout, out.name.removesuffix(".partial"))
    if best is not None:
        save_model(best, out, None, [tokenizer.eos_id], tokenizer.eos_id)
        tokenizer.save(out)


def estimate(config: Config, sources: Sources) -> Estimate:
    shape = config.model or shape_of(sources["init"][0])
    entries = vocab_size_of(sources["shards"][0])  # a vocabulary may grow, but does not shrink
    shape = dataclasses.replace(shape, vocab_size=max(shape.vocab_size, entries))
    tokens = tokens_of_shards(sources["shards"])
    return estimate_training(config, shape, tokens, lambda model: language_modeling(False, config.balance))


STAGE = Stage(
    config=Config,
    run=run,
    makes=("model", "tokenizer"),
    estimate=estimate,
    check=lambda config, inputs: config.check(),
    resumable=True,
    distributed=True,
    scratch=SCRATCH,
)
