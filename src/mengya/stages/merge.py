"""A model with an adapter -> one model."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import torch

from mengya.metrics import say
from mengya.model.load import load_merged, outline
from mengya.schema import Input, config
from mengya.stage import Estimate, Inputs, Promise, Promises, Sources, Stage
from mengya.text.chat import Chat, own_template
from mengya.text.tokenizer import Tokenizer


@config
class Config:
    """Add an adapter to the weights of its model."""

    model: Annotated[str, Input("model")] = "@sft"
    """The directory of the adapter; it knows its model."""
    trust_remote_code: bool = False
    """Run the code that comes with a model whose architecture nobody else has (auto_map)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights that are written; they are added up in float32."""


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write a model directory."""
    (directory,) = inputs["model"]
    model, tokenizer = load_merged(directory, config.trust_remote_code), Tokenizer.load(directory)
    stops = sorted(Chat(tokenizer).stop_ids) if own_template(tokenizer.files) else [tokenizer.eos_id]
    model.save(out, getattr(torch, config.dtype), stops, tokenizer.eos_id)
    tokenizer.save(out)
    say(f"  {directory.name} and its model: {model.title}")


def promise(config: Config, inputs: Promises) -> Promise:
    (given,) = inputs["model"]
    if given.path is not None and given.model is not None:
        outline(given.model, given.path, trust_remote_code=config.trust_remote_code)
    return dataclasses.replace(given, path=None)


def estimate(config: Config, sources: Sources, promise: Promise) -> Estimate:
    training = next((m.training for m in sources["model"] if isinstance(m, Estimate)), None)
    size = training.parameters * getattr(torch, config.dtype).itemsize if training else 0
    return Estimate(seconds=5 + size / 1e9, disk=size, training=None)


STAGE = Stage(config=Config, run=run, makes=("model", "tokenizer"), estimate=estimate, promise=promise)
