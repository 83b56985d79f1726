"""Token shards -> a base model."""

import dataclasses
from pathlib import Path
from typing import Annotated

import torch

from mengya.data.mixture import HeldoutPart, Mixture, names_of, shares_of
from mengya.data.packing import Packer
from mengya.errors import UserError
from mengya.metrics import format_count, say
from mengya.model.adapters import holds_vocabulary
from mengya.model.language_model import LanguageModel
from mengya.model.load import load_model, outline
from mengya.model.native.config import ModelConfig, to_hf
from mengya.model.native.transformer import CausalLM
from mengya.model.vocabulary import adopt_tokenizer, check_extends
from mengya.schema import Input, config
from mengya.stage import Estimate, Inputs, Promise, Promises, Sources
from mengya.stages.estimates import tokens_of_shards
from mengya.stages.training import check_same_tokenizer, text_of, training_stage
from mengya.text.tokenizer import Tokenizer, read_backend
from mengya.train import balance
from mengya.train.estimate import estimate_training
from mengya.train.objectives import language_modeling
from mengya.train.run import train_model
from mengya.train.settings import TrainingConfig


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
            balance.check(self.balance, self.model.num_experts > 0, self.model.norm_topk_prob)
            if self.model.num_experts and self.model.num_experts_per_tok == 1 and self.model.norm_topk_prob:
                raise ValueError(
                    "model.num_experts_per_tok=1 with model.norm_topk_prob=true gives the chosen expert the weight 1 "
                    "whatever the router says, so that the router learns nothing from the text; set "
                    "model.norm_topk_prob=false, or model.num_experts_per_tok=2"
                )
        if self.model is not None and self.lora is not None:
            raise ValueError("the table lora needs a trained model; set init instead of model, or remove lora")
        if self.model is not None and self.freeze:
            raise ValueError(f"freeze={self.freeze} would keep random weights; remove it, or set init instead of model")
        count = 1 if isinstance(self.shards, str) else len(self.shards)
        if self.mixture is not None and len(self.mixture) != count:
            raise ValueError(f"mixture={self.mixture} must have one weight for each of the {count} shards")
        if self.mixture is not None and min(self.mixture, default=1) <= 0:
            raise ValueError(f"mixture={self.mixture} must have weights greater than 0; leave out what is not wanted")


def _model(config: Config, inputs: Inputs, tokenizer: Tokenizer) -> tuple[LanguageModel, int]:
    """A new one, or the one to go on with, and how many entries its vocabulary has grown by."""
    if config.model is not None:
        model = CausalLM(config.model.for_tokenizer(tokenizer.vocab_size))
        model.initialize(torch.Generator().manual_seed(config.seed))
        return model, 0
    (base,) = inputs["init"]
    torch.manual_seed(config.seed)
    new: list[int] = []

    def grow(model: LanguageModel) -> None:
        new.append(adopt_tokenizer(model, base, read_backend(inputs["shards"][0])))

    known = load_model(base, **config.loading, lora=config.lora, as_trained=True, change=grow)
    if new[-1]:
        _check_grows(known, new[-1])
    return known, new[-1]


def _check_grows(model: LanguageModel, grown: int) -> None:
    if not holds_vocabulary(model):
        raise UserError(
            f"the adapter does not hold the {grown:,} new entries of the vocabulary; name the layers that do in "
            'lora.modules_to_save, e.g. ["embed_tokens", "lm_head"]'
        )


def _describe(model: LanguageModel, base: Path | None, grown: int) -> None:
    if base is not None:
        say(f"  going on from {base.name}: {model.title}" + (f", with {grown:,} more entries" if grown else ""))
    total, active = model.all_parameters(), model.active_parameters()
    say(f"  {format_count(total)} parameters" + (f", {format_count(active)} of them active" if active < total else ""))


def _data(config: Config, directories: list[Path], tokenizer: Tokenizer) -> tuple[Packer, list[HeldoutPart]]:
    """The rows to train on, and the held-out text of each source."""
    sources = [text_of(shards, "train", config, tokenizer)[0] for shards in directories]
    train: Packer = sources[0] if len(sources) == 1 else Mixture(sources, config.mixture, config.seed)
    shares = shares_of(config.mixture or [len(source) for source in sources])
    names = names_of([str(shards) for shards in directories])
    texts = [text_of(shards, "heldout", config, tokenizer) for shards in directories]
    heldout = [
        HeldoutPart(n, packer, share, size) for n, share, (packer, size) in zip(names, shares, texts, strict=True)
    ]
    return train, heldout


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write a model directory and metrics.jsonl."""
    check_same_tokenizer(inputs["shards"])
    tokenizer = Tokenizer.load(inputs["shards"][0])
    train, heldout = _data(config, inputs["shards"], tokenizer)
    model, grown = _model(config, inputs, tokenizer)
    _describe(model, next(iter(inputs.get("init", [])), None), grown)
    objective, stops = language_modeling(config.balance), [tokenizer.eos_id]

    def rebuild() -> LanguageModel:
        return _model(config, inputs, tokenizer)[0]

    train_model(model, rebuild, objective, config, train, heldout, out, tokenizer, stops)


def promise(config: Config, inputs: Promises) -> Promise:
    shards = inputs["shards"][0]
    description: dict | None
    if config.model is not None:
        description = to_hf(config.model.for_tokenizer(shards.vocab_size))
    else:
        (base,) = inputs["init"]
        _check_vocabulary(config, base, shards)
        description = base.model
        if (
            description
            and description.get("vocab_size") != 0
            and outline(description, **config.loading).vocab_size < shards.vocab_size
        ):
            description = description | {"vocab_size": shards.vocab_size}
    return dataclasses.replace(shards, path=None, model=description)


def _check_vocabulary(config: Config, base: Promise, shards: Promise) -> None:
    """UserError if the shards' tokenizer is not that of the model, nor grown from it."""
    if base.path is not None and base.model is not None and shards.tokenizer is not None:
        model = outline(base.model, **config.loading, lora=config.lora)
        known = check_extends(model.vocab_size, base.path, read_backend(shards.tokenizer))
        if known < shards.vocab_size:
            _check_grows(model, shards.vocab_size - known)
            model.grow_vocabulary(known, [])  # refused by an architecture that cannot
    elif shards.vocab_size and shards.vocab_size < base.vocab_size:
        raise UserError(
            f"the shards' tokenizer has {shards.vocab_size} entries, fewer than the {base.vocab_size} of the model's; "
            "tokenize with the model's own tokenizer, or with one grown from it (tokenizer.extend)"
        )


def _check_shards(config: Config, inputs: Promises) -> None:
    names_of([config.shards] if isinstance(config.shards, str) else config.shards)
    known = [shards for shards in inputs["shards"] if shards.vocab_size]
    check_same_tokenizer([shards.tokenizer for shards in known if shards.tokenizer])
    sizes = {shards.vocab_size for shards in known}
    if len(sizes) > 1:
        raise UserError(
            f"the shards, of {' and '.join(map(str, sorted(sizes)))} entries, were made with different tokenizers; "
            "tokenize both with the same one"
        )
    for shards in known[:1]:
        if shards.tokenizer is not None:
            _ = Tokenizer.load(shards.tokenizer).eos_id


def estimate(config: Config, sources: Sources, promise: Promise) -> Estimate:
    tokens = tokens_of_shards(sources["shards"])
    return estimate_training(config, promise, tokens, lambda: language_modeling(config.balance))


STAGE = training_stage(Config, run, estimate, promise, _check_shards)
