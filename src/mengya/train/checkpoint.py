"""Checkpoints: everything a run needs to go on bit by bit, whole or not at all, without pickles."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mengya.errors import UserError
from mengya.model.transformer import CausalLM

_STATE = "state.json"


@dataclass
class Checkpoint:
    step: int
    """Steps that are done: the next one to take."""
    tensors: dict[str, Tensor]
    """Weights as `model.*`, optimizer moments as `optimizer.<moment>.*`, the random state as `rng`."""
    state: dict
    """Plain values of the run: guard, best held-out loss."""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def capture(model: CausalLM, optimizer: torch.optim.Optimizer, step: int, state: dict) -> Checkpoint:
    """References, not copies: save before the next step."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["model.lm_head.weight"]
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{moment}.{name}"] = value
    tensors["rng"] = torch.get_rng_state()
    return Checkpoint(step, tensors, state)


def save(checkpoint: Checkpoint, directory: Path) -> None:
    """Write into a hidden sibling, flush to disk, rename: a crash leaves the old one or the new one."""
    directory = Path(directory)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {name: t.detach().to("cpu").contiguous() for name, t in checkpoint.tensors.items()}
    save_file(tensors, partial / "tensors.safetensors")
    text = json.dumps({"step": checkpoint.step, "state": checkpoint.state})
    (partial / _STATE).write_text(text, encoding="utf-8")
    for path in (partial / "tensors.safetensors", partial / _STATE, partial):
        _sync(path)
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)
    _sync(directory.parent)


def load(directory: Path) -> Checkpoint:
    try:
        content = json.loads((directory / _STATE).read_text(encoding="utf-8"))
        tensors = load_file(directory / "tensors.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the checkpoint {directory} cannot be read ({error}); delete it to go on without it") from error
    return Checkpoint(content["step"], tensors, content["state"])


def restore_weights(checkpoint: Checkpoint, model: CausalLM) -> None:
    """Put the weights back. UserError if they are of another shape."""
    weights = {n.removeprefix("model."): t for n, t in checkpoint.tensors.items() if n.startswith("model.")}
    # Prefixes meet here: the checkpoint's own `model.` and the decoder's.
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights.get("model.embed_tokens.weight", torch.empty(0))
    own = model.state_dict()
    if {n: t.shape for n, t in weights.items()} != {n: t.shape for n, t in own.items()}:
        raise UserError("the checkpoint belongs to a model of another shape; delete the unfinished run or change back")
    model.load_state_dict(weights, strict=True)


def restore(checkpoint: Checkpoint, model: CausalLM, optimizer: torch.optim.Optimizer) -> None:
    """Put weights, optimizer and random state back."""
    restore_weights(checkpoint, model)
    for name, parameter in model.named_parameters():
        suffix = f".{name}"
        moments = {
            key.removeprefix("optimizer.").removesuffix(suffix): tensor
            for key, tensor in checkpoint.tensors.items()
            if key.startswith("optimizer.") and key.endswith(suffix) and key.count(".") == suffix.count(".") + 1
        }
        if moments:
            optimizer.state[parameter] = {
                moment: t.to(parameter.device) if moment != "step" else t for moment, t in moments.items()
            }
    torch.set_rng_state(checkpoint.tensors["rng"])


def latest(root: Path) -> Path | None:
    """The newest whole checkpoint `step-*` below `root`."""
    found = sorted(root.glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")))
    return found[-1] if found else None


def rotate(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` step checkpoints."""
    found = sorted(root.glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")))
    for old in found[: len(found) - keep]:
        shutil.rmtree(old)
