"""Checkpoints: everything a run needs to go on bit by bit, whole or not at all, without pickles."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mengya.errors import UserError
from mengya.metrics import say
from mengya.model.transformer import CausalLM

_STATE = "checkpoint"
"""Key of the file's metadata that holds the plain values."""


@dataclass
class Checkpoint:
    step: int
    """Steps that are done: the next one to take."""
    tensors: dict[str, Tensor]
    """Weights as `model.*`, optimizer moments as `optimizer.<moment>.*`, the random state as `rng`."""
    state: dict
    """Plain values of the run: guard, best held-out loss."""


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


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write one file beside `path`, flush it to disk, rename it: a crash leaves the old one or the new one, whole.

    OSError (a full disk, say) leaves the old one.
    """
    partial = path.with_name(f".{path.name}.partial")
    tensors = {name: t.detach().to("cpu").contiguous() for name, t in checkpoint.tensors.items()}
    try:
        save_file(tensors, partial, {_STATE: json.dumps({"step": checkpoint.step, "state": checkpoint.state})})
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except SafetensorError as error:
        raise _as_os_error(error, path) from error
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a directory cannot be flushed
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _as_os_error(error: SafetensorError, path: Path) -> OSError:
    """safetensors hides the system's error number in its message."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), str(error), str(path)) if number else OSError(f"{path}: {error}")


def load(path: Path) -> Checkpoint:
    """UserError if the file is not there or not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})[_STATE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the checkpoint {path} cannot be read ({error}); delete it to go on without it") from error
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
            # The fused optimizer wants its step counter there, too.
            optimizer.state[parameter] = {moment: t.to(parameter.device) for moment, t in moments.items()}
    torch.set_rng_state(checkpoint.tensors["rng"])


def paths(root: Path) -> list[Path]:
    """The step checkpoints below `root`, oldest first."""
    return sorted(root.glob("step-*.safetensors"), key=lambda path: int(path.stem.removeprefix("step-")))


def load_latest(root: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read; damaged ones are named, deleted and passed over. None: begin anew."""
    for path in reversed(paths(root)):
        try:
            return load(path)
        except UserError as error:
            say(f"passing over a damaged checkpoint: {error}")
            path.unlink(missing_ok=True)
    return None


def rotate(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` step checkpoints."""
    for old in paths(root)[:-keep]:
        old.unlink()
