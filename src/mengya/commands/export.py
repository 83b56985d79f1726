"""mengya export RUN_OR_CHECKPOINT OUT: a Hugging Face directory, or a GGUF file."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from mengya.commands import Command
from mengya.errors import UserError
from mengya.schema import Argument, config

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q5_0", "q4_0"]


@config
class Config:
    """Write a Hugging Face directory, or a GGUF file, from an unfinished training, a checkpoint, an adapter merged
    into its model, or a model in another type."""

    source: Annotated[Path, Argument("RUN_OR_CHECKPOINT")]
    """E.g. runs/x/pretrain.partial, one of its checkpoints/step-*, or a model directory."""
    out: Annotated[Path, Argument("OUT")]
    """Must not exist."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Default: that of the weights."""
    gguf: bool = False
    """Write OUT/<name>-<type>.gguf for llama.cpp, and a Modelfile for Ollama, instead of a Hugging Face directory."""
    quantize: Quantization | None = None
    """Type of the weights in the GGUF file. Default: that of the weights."""
    check_with: list[Path] = dataclasses.field(default_factory=list)
    """A Python that has llama_cpp or vllm, to check with what is written; may be given several times. Without it, the
    engines that are installed beside mengya check."""
    license: str | None = None
    """What the model card says, e.g. apache-2.0. Default: unknown."""
    push: str | None = None
    """Upload what was written to hf:owner/name (HF_TOKEN) or ms:owner/name (MODELSCOPE_API_TOKEN)."""
    public: bool = False
    """Make the repository of --push public, if it is new. Default: private."""
    trust_remote_code: bool = False
    """Run the code that comes with the model, if nobody else has its architecture (auto_map)."""


def run(config: Config) -> None:
    import torch

    from mengya.export import export

    if config.dtype and config.gguf:
        raise UserError("--dtype is for Hugging Face directories; give --quantize f32, f16 or bf16 with --gguf")
    if config.quantize and not config.gguf:
        raise UserError(f"--quantize {config.quantize} is for GGUF files; add --gguf")
    if config.public and not config.push:
        raise UserError("--public is for --push; give --push hf:owner/name, too")
    dtype = getattr(torch, config.dtype) if config.dtype else None
    export(
        config.source,
        config.out,
        dtype,
        config.trust_remote_code,
        gguf=config.gguf,
        quantize=config.quantize,
        pythons=config.check_with,
        license=config.license,
        push=config.push,
        public=config.public,
    )


COMMAND = Command(Config, run)
