"""mengya export RUN_OR_CHECKPOINT OUT: a Hugging Face directory."""

from pathlib import Path
from typing import Annotated, Literal

from mengya.commands import Command
from mengya.schema import Argument, config


@config
class Config:
    """Write a Hugging Face directory from an unfinished training, a checkpoint, an adapter merged into its model, or
    a model in another type."""

    source: Annotated[Path, Argument("RUN_OR_CHECKPOINT")]
    """E.g. runs/x/pretrain.partial, one of its checkpoints/step-*, or a model directory."""
    out: Annotated[Path, Argument("OUT")]
    """Must not exist."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Default: that of the weights."""
    trust_remote_code: bool = False
    """Run the code that comes with the model, if nobody else has its architecture (auto_map)."""


def run(config: Config) -> None:
    import torch

    from mengya.export import export

    dtype = getattr(torch, config.dtype) if config.dtype else None
    export(config.source, config.out, dtype, config.trust_remote_code)


COMMAND = Command(Config, run)
