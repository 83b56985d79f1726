"""GGUF files (github.com/ggml-org/ggml, docs/gguf.md): our models as llama.cpp computes them, and back.

llama.cpp has one architecture for each way to compute, and fixes some settings in each. Its `llama`, `ernie4_5-moe`
and `deepseek` rotate neighbouring dimensions of a head, where we rotate halves: rows of q and k change places. Experts
whose weights are normalised are `ernie4_5-moe`, others `deepseek`. What no architecture computes is refused.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mengya.errors import UserError
from mengya.model.language_model import LanguageModel
from mengya.model.native.config import FAMILIES, ModelConfig
from mengya.model.native.rope import RotaryEmbedding
from mengya.model.native.transformer import CausalLM

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q5_0", "q4_0"]
Values = dict[str, Any]
"""Metadata: bool, int, float, str, or a list of one of them."""

BLOCK = 32
"""Numbers that share a scale in q8_0, q5_0 and q4_0."""
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q5_0": 8, "bf16": 32}  # llama.h, enum llama_ftype
_PAIRS = ("llama", "ernie4_5-moe", "deepseek")
"""Architectures that rotate neighbouring dimensions."""

_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_OF_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    **{f"self_attn.{p}_proj.{kind}": f"attn_{p}.{kind}" for p in "qkv" for kind in ("weight", "bias")},
    **{f"self_attn.o_proj.{kind}": f"attn_output.{kind}" for kind in ("weight", "bias")},
    **{f"self_attn.{p}_norm.weight": f"attn_{p}_norm.weight" for p in "qk"},
    **{f"mlp.{p}_proj.{kind}": f"ffn_{p}.{kind}" for p in ("gate", "up", "down") for kind in ("weight", "bias")},
    **{f"mlp.shared_experts.{p}_proj.weight": f"ffn_{p}_shexp.weight" for p in ("gate", "up", "down")},
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.moe_statics.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.experts.gate_up_proj": "ffn_gate_up_exps.weight",  # two tensors there
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}
_OURS = {theirs: ours for ours, theirs in (_WHOLE | _OF_LAYER).items()}


class File(NamedTuple):
    """What `read` finds."""

    values: Values
    tensors: dict[str, Tensor]
    """float32."""
    types: dict[str, str]


def require_library() -> Any:
    """The module gguf. UserError if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise UserError("GGUF files need the library gguf; pip install 'mengya[gguf]'") from error
    return gguf


# ---- architecture and hyperparameters --------------------------------------------------------------------------------


def native(model: LanguageModel, origin: str) -> CausalLM:
    """The model, if it is one of ours. UserError for others."""
    if not isinstance(model, CausalLM):
        raise UserError(
            f"{origin} is of the class {model.title}; GGUF files are written of {', '.join(FAMILIES)}: use "
            "convert_hf_to_gguf.py of llama.cpp for others"
        )
    return model


def architecture(shape: ModelConfig, origin: str) -> str:
    """llama.cpp's name of the architecture that computes this shape. UserError, naming the setting, if none does."""
    scaling = shape.rope_scaling
    llama3 = scaling is not None and scaling.rope_type == "llama3"
    square = shape.num_attention_heads * shape.head_dim == shape.hidden_size
    if shape.num_experts:
        found = "ernie4_5-moe" if shape.norm_topk_prob else "deepseek"
    elif shape.qk_norm:
        found = "qwen3"
    else:  # which takes biases too, heads of any width, and Llama 3.1's scaling
        found = "qwen2" if shape.qkv_bias and square and not llama3 else "llama"
    refused = {
        "qk_norm with attention_bias": found == "qwen3" and shape.attention_bias,
        f"norm_topk_prob=false with head_dim={shape.head_dim}, which is not hidden_size / num_attention_heads": (
            found == "deepseek" and not square
        ),
        f"rope_type=llama3 in the architecture {found}": llama3 and found != "llama",
        "rope_type=dynamic": scaling is not None and scaling.rope_type == "dynamic",
    }
    if scaling is not None and scaling.rope_type == "yarn":
        refused["yarn with other beta_fast, beta_slow than 32 and 1"] = (scaling.beta_fast, scaling.beta_slow) != (
            32,
            1,
        )
        refused["yarn with truncate=false"] = not scaling.truncate
    for what, is_set in refused.items():
        if is_set:
            raise UserError(
                f"{origin}: llama.cpp does not compute {what}; serve the Hugging Face directory (mengya export without "
                "--gguf)"
            )
    return found


def hyperparameters(shape: ModelConfig, found: str, context: int, rows: int) -> Values:
    """The metadata of a shape in the architecture `found`, with every value that llama.cpp would otherwise assume."""
    values: Values = {
        "vocab_size": rows,
        "context_length": context,
        "embedding_length": shape.hidden_size,
        "block_count": shape.num_hidden_layers,
        "feed_forward_length": shape.intermediate_size,
        "attention.head_count": shape.num_attention_heads,
        "attention.head_count_kv": shape.num_key_value_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": float(shape.rms_norm_eps),
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": float(shape.rope_theta),
        "rope.scaling.type": "none",
    }
    scaling = shape.rope_scaling
    if scaling is not None and scaling.rope_type in ("linear", "yarn"):
        values |= {"rope.scaling.type": scaling.rope_type, "rope.scaling.factor": float(scaling.factor)}
    if scaling is not None and scaling.rope_type == "yarn":
        values["rope.scaling.original_context_length"] = (
            scaling.original_max_position_embeddings or shape.max_position_embeddings
        )
        # llama.cpp multiplies this by what it takes for the amplitude itself.
        amplitude = RotaryEmbedding(shape).amplitude
        values["rope.scaling.attn_factor"] = amplitude / (1 + 0.1 * math.log(scaling.factor))
    if shape.num_experts:
        values |= _of_experts(shape, found)
    return {f"{found}.{name}": value for name, value in values.items()}


def _of_experts(shape: ModelConfig, found: str) -> Values:
    width, shared = shape.moe_intermediate_size, shape.n_shared_experts
    values: Values = {
        "expert_count": shape.num_experts,
        "expert_used_count": shape.num_experts_per_tok,
        "expert_feed_forward_length": width,
        "leading_dense_block_count": shape.first_k_dense_replace,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": shape.norm_topk_prob,
        "expert_gating_func": 1,  # softmax
    }
    if found == "ernie4_5-moe":
        return values | {"expert_shared_feed_forward_length": shared * width, "interleave_moe_layer_step": 1}
    return values | {"expert_shared_count": shared or 1}  # which must have one: see `to_gguf`


# ---- tensors ---------------------------------------------------------------------------------------------------------


def _swapped(tensor: Tensor, head_dim: int, back: bool) -> Tensor:
    """Rows of q or k in the order (pair, half) within each head instead of (half, pair), or `back`."""
    parts = (head_dim // 2, 2) if back else (2, head_dim // 2)
    return tensor.unflatten(0, (-1, *parts)).transpose(1, 2).reshape(tensor.shape)


def _is_rotated(name: str) -> bool:
    return re.search(r"\battn_[qk]\.(weight|bias)$", name) is not None


def to_gguf(state: Mapping[str, Tensor], shape: ModelConfig, found: str, rows: int) -> dict[str, Tensor]:
    """Our weights by llama.cpp's names and in its order. The embedding keeps its first `rows` rows: those behind have
    no token, and no reader can then choose them. UserError if a tensor has no place."""
    out: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", ours)
        theirs = _OF_LAYER.get(layer[2]) if layer else _WHOLE.get(ours)
        if theirs is None:
            raise UserError(f"the weights {ours} have no place in a GGUF file of the architecture {found}")
        name = f"blk.{layer[1]}.{theirs}" if layer else theirs
        if theirs == "ffn_gate_up_exps.weight":
            gate, up = tensor.chunk(2, dim=1)
            out |= {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}
        elif theirs in ("token_embd.weight", "output.weight"):
            out[name] = tensor[:rows]
        elif theirs == "exp_probs_b.bias":
            out[name] = tensor.flatten()
        elif found in _PAIRS and _is_rotated(name):
            out[name] = _swapped(tensor, shape.head_dim, back=False)
        else:
            out[name] = tensor
    if found == "deepseek" and not shape.n_shared_experts:
        out |= _idle_experts(shape)
    if shape.rope_scaling is not None and shape.rope_scaling.rope_type == "llama3":
        plain = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
        out["rope_freqs.weight"] = plain / RotaryEmbedding(shape).frequencies
    return out


def _idle_experts(shape: ModelConfig) -> dict[str, Tensor]:
    """A shared expert of zeros in each layer of experts, where llama.cpp demands one and we have none: it adds 0."""
    wide, narrow = torch.zeros(shape.moe_intermediate_size, shape.hidden_size), "ffn_{}_shexp.weight"
    return {
        f"blk.{layer}.{narrow.format(part)}": wide.T.contiguous() if part == "down" else wide
        for layer in filter(shape.has_experts, range(shape.num_hidden_layers))
        for part in ("gate", "up", "down")
    }


def from_gguf(tensors: Mapping[str, Tensor], shape: ModelConfig, found: str) -> dict[str, Tensor]:
    """The reverse of `to_gguf`, of a model with as many rows as the file has tokens."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        theirs = layer[2] if layer else name
        prefix = f"model.layers.{layer[1]}." if layer else ""
        if theirs == "ffn_up_exps.weight" or name == "rope_freqs.weight":
            continue
        if theirs == "ffn_gate_exps.weight":
            up = tensors[name.replace("ffn_gate", "ffn_up")]
            out[f"{prefix}mlp.experts.gate_up_proj"] = torch.cat((tensor, up), dim=1)
        elif not (theirs.endswith("_shexp.weight") and not shape.n_shared_experts):
            if found in _PAIRS and _is_rotated(name):
                tensor = _swapped(tensor, shape.head_dim, back=True)
            out[prefix + _OURS[theirs]] = tensor[None] if theirs == "exp_probs_b.bias" else tensor
    return out


# ---- files -----------------------------------------------------------------------------------------------------------


def stored_type(name: str, shape: tuple[int, ...], wanted: Quantization) -> Quantization:
    """The type of one tensor in a file of the type `wanted`: vectors and routers stay float32, rows that are no
    multiple of a block become f16, and in 4 and 5 bits the embedding and the output keep 8."""
    if len(shape) == 1 or name.endswith("ffn_gate_inp.weight"):
        return "f32"
    if wanted in ("q5_0", "q4_0") and name in ("token_embd.weight", "output.weight"):
        wanted = "q8_0"
    return "f16" if wanted.startswith("q") and shape[-1] % BLOCK else wanted


def write(path: Path, values: Values, tensors: Mapping[str, Tensor], wanted: Quantization) -> dict[str, str]:
    """Write a file, one tensor in memory at a time; the type that each got. UserError for a number that is too large.

    `values` hold general.architecture and what `hyperparameters` and the vocabulary add.
    """
    gguf = require_library()
    writer = gguf.GGUFWriter(path, values["general.architecture"])
    types: dict[str, str] = {name: stored_type(name, tuple(tensor.shape), wanted) for name, tensor in tensors.items()}
    for key, value in (values | {"general.file_type": _FILE_TYPES[wanted], "general.quantization_version": 2}).items():
        if key != "general.architecture":  # the writer has written it
            _add(writer, key, value)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[types[name].upper()]
        size = math.prod(gguf.quant_shape_to_byte_shape(tuple(tensor.shape), kind))
        writer.add_tensor_info(name, tuple(tensor.shape), None, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for data in _packed(gguf, tensors, types):
        writer.write_tensor_data(data)
    writer.close()
    return types


def _packed(gguf: Any, tensors: Mapping[str, Tensor], types: Mapping[str, str]) -> Iterator[Any]:
    for name, tensor in tensors.items():
        wide = tensor.detach().float().contiguous()
        # The scale of a block is a float16, too.
        limit = {"f16": 65504, "q8_0": 65504 * 127, "q5_0": 65504 * 16, "q4_0": 65504 * 8}.get(types[name], math.inf)
        if not wide.isfinite().all() or wide.abs().max() > limit:
            raise UserError(f"{name} has numbers that {types[name]} cannot hold; use --quantize bf16")
        yield gguf.quants.quantize(wide.numpy(), gguf.GGMLQuantizationType[types[name].upper()])


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        kinds[type(value)](key, value)


def read(path: Path) -> File:
    """UserError if the file cannot be read."""
    gguf = require_library()
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise UserError(f"{path} is no readable GGUF file ({error}); export it again") from error
    values = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors, types = {}, {}
    for found in reader.tensors:
        wide = gguf.quants.dequantize(found.data, found.tensor_type)
        tensors[found.name] = torch.from_numpy(wide.copy()).reshape(*reversed(found.shape.tolist()))
        types[found.name] = found.tensor_type.name.lower()
    return File(values, tensors, types)
