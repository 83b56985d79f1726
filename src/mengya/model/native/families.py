"""Tensors between our names and those on disk, for the families whose files are not our state dictionary.

Ours are transformers' names in memory: all experts of a layer in one tensor. On disk every expert has its own, as vLLM,
llama.cpp and older transformers read them.

Ernie-4.5-MoE rotates neighbouring dimensions of a head, we rotate halves: rows of q_proj and k_proj change places.
Qwen2-MoE multiplies the shared expert by sigmoid(gate . x): a zero gate halves it, so its down_proj is written doubled,
which is exact in floating point. Biases of q, k and v are written as zeros, because vLLM always reads them.
"""

import re

import torch
from torch import Tensor

from mengya.errors import UserError
from mengya.model.language_model import Unsupported
from mengya.model.native.config import ModelConfig

_State = dict[str, Tensor]
_BIASES = ("q_proj.bias", "k_proj.bias", "v_proj.bias")


def to_disk(state: _State, shape: ModelConfig, family: str) -> _State:
    """Our state dictionary as a `family` directory holds it."""
    if family not in _TO:
        return state
    out: _State = {}
    for name, tensor in state.items():
        if name.endswith("mlp.experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            for index, matrix in enumerate(tensor):
                gate, up = matrix.chunk(2)
                out |= {f"{prefix}{index}.gate_proj.weight": gate, f"{prefix}{index}.up_proj.weight": up}
        elif name.endswith("mlp.experts.down_proj"):
            prefix = name.removesuffix("down_proj")
            out |= {f"{prefix}{index}.down_proj.weight": matrix for index, matrix in enumerate(tensor)}
        else:
            out |= _TO[family](name, tensor, shape)
    return out


def from_disk(state: _State, shape: ModelConfig, family: str, source: str) -> _State:
    """The reverse. `source` names the directory in errors; UserError for what we cannot represent."""
    if family not in _FROM:
        return state
    out: _State = {}
    stacks: dict[str, dict[tuple[str, int], Tensor]] = {}
    for name, tensor in state.items():
        expert = re.fullmatch(r"(.*\.mlp\.experts\.)(\d+)\.(gate|up|down)_proj\.weight", name)
        if expert:
            stacks.setdefault(expert[1], {})[expert[3], int(expert[2])] = tensor
        elif name.endswith(("mlp.experts.gate_up_proj", "mlp.experts.down_proj")):
            out[name] = tensor  # already fused
        else:
            out |= _FROM[family](name, tensor, shape, source)
    experts = range(shape.num_experts)
    for prefix, parts in stacks.items():
        shapes = {(kind, tensor.shape) for (kind, _), tensor in parts.items()}
        if len(shapes) != 3 or parts.keys() != {(kind, i) for kind in ("gate", "up", "down") for i in experts}:
            raise UserError(
                f"the weights in {source} lack some of the {shape.num_experts} experts; copy the model again"
            )
        pairs = [torch.cat((parts["gate", i], parts["up", i])) for i in experts]
        out |= {f"{prefix}gate_up_proj": torch.stack(pairs)}
        out |= {f"{prefix}down_proj": torch.stack([parts["down", i] for i in experts])}
    return out


# ---- Ernie-4.5-MoE ---------------------------------------------------------------------------------------------------

_BIAS = ("mlp.gate.moe_statics.e_score_correction_bias", "mlp.moe_statics.e_score_correction_bias")


def _rotates(name: str) -> bool:
    return name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight"))


def _to_ernie(name: str, tensor: Tensor, shape: ModelConfig) -> _State:
    if _rotates(name):  # (half, pair) -> (pair, half) within each head
        halves = tensor.unflatten(0, (-1, 2, shape.head_dim // 2))
        return {name: halves.transpose(1, 2).reshape(tensor.shape)}
    return {name.replace(*_BIAS): tensor}


def _from_ernie(name: str, tensor: Tensor, shape: ModelConfig, source: str) -> _State:
    if _rotates(name):
        pairs = tensor.unflatten(0, (-1, shape.head_dim // 2, 2))
        return {name: pairs.transpose(1, 2).reshape(tensor.shape)}
    if ".mtp_" in name or name.startswith("model.mtp"):  # the extra head of multi-token prediction
        return {}
    return {name if _BIAS[0] in name else name.replace(_BIAS[1], _BIAS[0]): tensor}


# ---- Qwen2-MoE -------------------------------------------------------------------------------------------------------


def _to_qwen2_moe(name: str, tensor: Tensor, shape: ModelConfig) -> _State:
    if ".mlp.shared_experts." in name:
        out = {name.replace("shared_experts", "shared_expert"): tensor}
        if name.endswith("down_proj.weight"):
            prefix = name.partition("shared_experts")[0]
            out = {f"{prefix}shared_expert.down_proj.weight": 2 * tensor}
            out[f"{prefix}shared_expert_gate.weight"] = tensor.new_zeros(1, shape.hidden_size)
        return out
    out = {name: tensor}
    if name.endswith(tuple(bias.replace("bias", "weight") for bias in _BIASES)):
        out[name.removesuffix("weight") + "bias"] = tensor.new_zeros(len(tensor))
    if name.endswith("mlp.gate.weight") and not shape.n_shared_experts:  # a shared expert of width 0
        prefix, none = name.removesuffix("gate.weight"), (0, shape.hidden_size)
        out |= {f"{prefix}shared_expert.{part}_proj.weight": tensor.new_zeros(none) for part in ("gate", "up")}
        out[f"{prefix}shared_expert.down_proj.weight"] = tensor.new_zeros(none[::-1])
        out[f"{prefix}shared_expert_gate.weight"] = tensor.new_zeros(1, shape.hidden_size)
    return out


def _from_qwen2_moe(name: str, tensor: Tensor, shape: ModelConfig, source: str) -> _State:
    if name.endswith(_BIASES):
        if tensor.any():
            raise Unsupported(f"{source}: {name} is not zero, and attention has no bias in our models with experts")
        return {}
    if name.endswith("mlp.shared_expert_gate.weight"):
        if tensor.any() and shape.n_shared_experts:
            raise Unsupported(f"{source}: {name} is not zero: its shared expert is gated, which our models are not")
        return {}
    if ".mlp.shared_expert." in name:
        if not shape.n_shared_experts:
            return {}
        halved = tensor / 2 if name.endswith("down_proj.weight") else tensor
        return {name.replace("shared_expert", "shared_experts"): halved}
    out = {name: tensor}
    if name.endswith("mlp.gate.weight") and shape.norm_topk_prob:
        bias = torch.zeros(1, shape.num_experts)
        out[name.removesuffix("weight") + "moe_statics.e_score_correction_bias"] = bias
    return out


_TO = {"ernie4_5_moe": _to_ernie, "qwen2_moe": _to_qwen2_moe}
_FROM = {"ernie4_5_moe": _from_ernie, "qwen2_moe": _from_qwen2_moe}
