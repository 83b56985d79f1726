"""What a training needs on each GPU, counted from the shapes of the weights, for models that are too large to
measure."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from torch import nn

from mengya.errors import UserError
from mengya.manifest import read_object
from mengya.model.language_model import LanguageModel
from mengya.train.settings import TrainingConfig

GPUS = (1, 2, 4, 8)
_IN_4_BITS = 0.516
"""Bytes: half a one, and the two levels of scales (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""
_BESIDE = 1.5
"""What a layer keeps for its backward pass, as a multiple of what goes into and out of its matrices."""
_LOGITS = 64 << 20
"""Numbers in a chunk of logits and its gradient, about."""


class _Counts(NamedTuple):
    """Numbers of weights, and of what is kept."""

    whole: int
    trained: int
    matrices: int
    """In the blocks: those that 4 bits hold, and that are copied in half precision."""
    kept: float
    """By all blocks for a token."""
    blocks: int
    width: int


def memory_per_device(
    model: LanguageModel, settings: TrainingConfig, count: int, device: str, half: bool, frozen: int = 0
) -> float:
    """Bytes on each of `count` devices, about; `model` needs no weights. `half`: bfloat16 activations. `frozen`:
    further models of this size that are only asked. UserError if the rows of a step cannot be divided so."""
    return _needed(_count(model), settings, count, device, half, frozen)


def _needed(counts: _Counts, settings: TrainingConfig, gpus: int, device: str, half: bool, frozen: int) -> float:
    """Of a model with these counts."""
    size = 2 if half else 4
    in_4_bits = settings.lora is not None and settings.lora.quantize != "none"
    copies = 2.0 * counts.matrices if half and not in_4_bits else 0
    weights = 4.0 * counts.whole - (4 - _IN_4_BITS) * counts.matrices * in_4_bits
    gradients, moments = 4.0 * counts.trained, 8.0 * counts.trained
    if settings.parallel == "fsdp":
        weights, gradients, moments = (part / gpus for part in (weights, gradients, moments))
        copies = 2 * (weights + copies) / counts.blocks if settings.fsdp.reshard_after_forward else copies
        if settings.fsdp.cpu_offload:
            weights = gradients = moments = 0.0
    elif settings.parallel == "deepspeed":
        weights, gradients, moments, copies = _zero(settings, counts, gpus, half, (weights, gradients, moments, copies))
    tokens = settings.rows_at_once(gpus, device) * settings.seq_len
    kept = counts.kept
    if settings.activation_checkpointing:
        kept = counts.kept / counts.blocks + counts.width * counts.blocks
    asked = frozen * (4.0 * counts.whole + 2 * counts.matrices * half)
    return weights + gradients + moments + copies + asked + tokens * kept * size + _LOGITS * size


def _zero(
    settings: TrainingConfig, counts: _Counts, gpus: int, half: bool, parts: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """Weights, gradients, moments and copies as DeepSpeed divides them; in half precision it adds whole float32 ones of
    what is trained to the optimizer (Rajbhandari et al. 2019, arXiv:1910.02054)."""
    weights, gradients, moments, copies = parts
    zero = read_object(Path(settings.deepspeed).expanduser(), "correct deepspeed").get("zero_optimization", {})
    stage = zero.get("stage") or 0
    if half:
        weights, copies, moments = weights - 2 * counts.whole if copies else weights, 0, moments + 4 * counts.trained
    moments /= gpus
    gradients /= gpus if stage > 1 else 1
    weights /= gpus if stage > 2 else 1
    if zero.get("offload_optimizer", {}).get("device") == "cpu":
        gradients, moments = gradients if stage < 2 else 0, 0
    if zero.get("offload_param", {}).get("device") == "cpu":
        weights = 0
    return weights, gradients, moments, copies


def _count(model: LanguageModel) -> _Counts:
    blocks = list(model.blocks())
    matrices, kept = 0, 0.0
    taken = model.description().get("num_experts_per_tok") or 1
    for block in blocks:
        for name, module in block.named_modules():
            weight = None if "lora_" in name or list(module.children()) else getattr(module, "weight", None)
            if weight is not None and weight.ndim == 2 and not isinstance(module, nn.Embedding):
                matrices += weight.numel()
                kept += sum(weight.shape)
        for parameter in block.parameters():
            if parameter.ndim == 3:  # all experts of a layer
                matrices += parameter.numel()
                kept += sum(parameter.shape[1:]) * taken
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = model.output_weight.shape[1]
    return _Counts(model.all_parameters(), trained, matrices, _BESIDE * kept, max(1, len(blocks)), width)


def on_gpus(model: LanguageModel, settings: TrainingConfig, frozen: int = 0) -> dict[int, float]:
    """Number of GPUs -> bytes on each, in bfloat16 unless the settings say float32; only those that divide a step."""
    found, counts = {}, _count(model)
    for gpus in GPUS:
        with contextlib.suppress(UserError):
            found[gpus] = _needed(counts, settings, gpus, "cuda", settings.dtype != "float32", frozen)
    return found
