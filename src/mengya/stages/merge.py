"""A model with an adapter -> one model."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import torch

from mengya.metrics import say
from mengya.model.load import load_merged, outline
from mengya.schema import Input, config
from mengya.stage import Estimate, Inputs, Promise, Promises, Sources, Stage
from mengya.stages.training import check_same_tokenizer
from mengya.text.chat import ends_of
from mengya.text.tokenizer import Tokenizer


@config
class Config:
    """Add an adapter to the weights of its model."""

    model: Annotated[str | list[str], Input("model")] = "@sft"
    """The directory of the adapter; it knows its model. Several adapters of one model are added up."""
    weights: list[float] | None = None
    """What each of several adapters is multiplied by, e.g. [0.7, 0.3]; unset: 1 each."""
    trust_remote_code: bool = False
    """Run the code that comes with a model whose architecture nobody else has (auto_map)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights that are written; they are added up in float32."""

    def __post_init__(self) -> None:
        count = 1 if isinstance(self.model, str) else len(self.model)
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"weights={self.weights} must have one for each of the {count} adapters")


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write a model directory."""
    directories = inputs["model"]
    model = load_merged(directories, config.weights, config.trust_remote_code)
    tokenizer = Tokenizer.load(directories[0])
    model.save(out, getattr(torch, config.dtype), ends_of(tokenizer), tokenizer.eos_id)
    tokenizer.save(out)
    say(f"  {' + '.join(path.name for path in directories)} and their model: {model.title}")


def promise(config: Config, inputs: Promises) -> Promise:
    given, *others = inputs["model"]
    for other in others:
        if given.tokenizer is not None and other.tokenizer is not None:
            check_same_tokenizer([given.tokenizer, other.tokenizer])
    if given.path is not None and given.model is not None:
        outline(given.model, given.path, trust_remote_code=config.trust_remote_code)
    return dataclasses.replace(given, path=None)


def estimate(config: Config, sources: Sources, promise: Promise) -> Estimate:
    training = next((m.training for m in sources["model"] if isinstance(m, Estimate)), None)
    size = training.parameters * getattr(torch, config.dtype).itemsize if training else 0
    return Estimate(seconds=5 + size / 1e9, disk=size, training=None)


STAGE = Stage(config=Config, run=run, makes=("model", "tokenizer"), estimate=estimate, promise=promise)
