"""The shape of a dense model, in Hugging Face's names, and its two spellings in config.json (Llama, Qwen3)."""

import dataclasses
from typing import Any, Literal

from pydantic import model_validator

from mengya.errors import UserError
from mengya.schema import Count, Natural, Positive, config


@config
class RopeScaling:
    """Context extension of rotary embeddings, as `rope_scaling` in transformers."""

    rope_type: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: float
    original_max_position_embeddings: int | None = None
    """Context of the model before extension; None: max_position_embeddings."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None

    @model_validator(mode="after")
    def _check(self) -> "RopeScaling":
        if self.factor < 1:
            raise ValueError(f"factor={self.factor} must be at least 1")
        if self.rope_type == "llama3" and None in (self.low_freq_factor, self.high_freq_factor):
            raise ValueError("rope_type=llama3 needs low_freq_factor and high_freq_factor, e.g. 1.0 and 4.0")
        return self


@config
class ModelConfig:
    """A dense decoder. With `qk_norm` it is written as Qwen3, otherwise as Llama."""

    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    intermediate_size: Count
    max_position_embeddings: Count
    """The longest context."""
    vocab_size: Natural = 0
    """Rows of the embedding; 0: as many as the tokenizer has."""
    head_dim: Natural = 0
    """0: hidden_size / num_attention_heads."""
    tie_word_embeddings: bool = True
    qk_norm: bool = False
    """RMSNorm of each query and key head (Qwen3)."""
    attention_bias: bool = False
    mlp_bias: bool = False
    rms_norm_eps: Positive = 1e-6
    rope_theta: Positive = 10_000.0
    rope_scaling: RopeScaling | None = None
    initializer_range: Positive = 0.02

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads % groups:
            raise ValueError(f"num_attention_heads={heads} is not a multiple of num_key_value_heads={groups}")
        if not self.head_dim:
            if self.hidden_size % heads:
                raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={heads}")
            object.__setattr__(self, "head_dim", self.hidden_size // heads)
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary embeddings")
        if self.qk_norm and self.mlp_bias:
            raise ValueError("mlp_bias=true with qk_norm=true exists in no published architecture; drop one of them")
        return self

    def for_tokenizer(self, vocab_size: int) -> "ModelConfig":
        """This shape with at least `vocab_size` embedding rows."""
        if self.vocab_size and self.vocab_size < vocab_size:
            raise UserError(
                f"vocab_size={self.vocab_size} is smaller than the tokenizer's {vocab_size}; remove it or raise it"
            )
        return dataclasses.replace(self, vocab_size=self.vocab_size or vocab_size)


# Fields that mean and are named the same in both architectures' config.json.
_SAME = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size "
    "max_position_embeddings tie_word_embeddings attention_bias rms_norm_eps initializer_range"
).split()


def to_hf(shape: ModelConfig, dtype: str, eos_token_id: int | list[int] | None, pad_token_id: int | None) -> dict:
    """The content of config.json; `rope_theta` and `rope_scaling` are for readers older than transformers 5."""
    out: dict = {
        "architectures": ["Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if shape.qk_norm else "llama",
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
    }
    out |= {name: getattr(shape, name) for name in _SAME}
    if not shape.qk_norm:
        out["mlp_bias"] = shape.mlp_bias
    rope: dict = {"rope_type": "default"}
    if shape.rope_scaling:
        rope = {k: v for k, v in dataclasses.asdict(shape.rope_scaling).items() if v is not None}
        out["rope_scaling"] = rope
    out["rope_theta"] = shape.rope_theta
    out["rope_parameters"] = rope | {"rope_theta": shape.rope_theta}
    return out


def from_hf(hf: dict, source: str) -> ModelConfig:
    """The reverse of `to_hf`; also reads what transformers 4 and 5 write for Llama and Qwen3.

    `source` names the directory in errors. Raises UserError for other architectures or settings that we do not have.
    """
    model_type = hf.get("model_type")
    if model_type not in ("llama", "qwen3"):
        raise UserError(f"{source}: model_type {model_type!r} is not implemented natively; use a llama or qwen3 model")
    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(f"{source}: hidden_act={hf['hidden_act']!r} is not supported, only silu")
    if hf.get("use_sliding_window"):
        raise UserError(f"{source}: sliding-window attention is not supported; set use_sliding_window to false")
    defaults = {
        "llama": {"vocab_size": 32000, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
        "qwen3": {"vocab_size": 151936, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "head_dim": 128},
    }[model_type]
    values: dict = {name: hf.get(name, defaults.get(name)) for name in _SAME}
    values["num_key_value_heads"] = values["num_key_value_heads"] or values["num_attention_heads"]
    values["tie_word_embeddings"] = bool(values["tie_word_embeddings"])
    values = {name: value for name, value in values.items() if value is not None}
    rope = dict(hf.get("rope_parameters") or {}) or dict(hf.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or hf.get("rope_theta") or 10_000.0
    kind: Any = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{source}: partial rotary embeddings are not supported")
    try:
        scaling = None if kind == "default" else RopeScaling(rope_type=kind, **rope)
        return ModelConfig(
            **values,
            qk_norm=model_type == "qwen3",
            mlp_bias=bool(hf.get("mlp_bias")) and model_type == "llama",
            rope_theta=theta,
            rope_scaling=scaling,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: config.json does not describe a model that we implement: {error}") from error
