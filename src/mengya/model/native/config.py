"""The shape of a model, in Hugging Face's names, and its spellings in config.json."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from pydantic import model_validator

from mengya.errors import UserError
from mengya.model.language_model import Unsupported
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
    """A decoder, dense or with experts.

    Dense, it is written as Qwen3 with `qk_norm`, as Qwen2 with `qkv_bias`, as Mistral with `sliding_window`, otherwise
    as Llama; with experts as Ernie-4.5-MoE if their weights are normalised, otherwise as Qwen2-MoE.
    """

    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    intermediate_size: Count
    """Width of the dense feed-forward layers."""
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
    """Biases of q_proj, k_proj, v_proj and o_proj."""
    qkv_bias: bool = False
    """Biases of q_proj, k_proj and v_proj alone (Qwen2)."""
    sliding_window: Natural = 0
    """The latest tokens that a query reads, itself included (Mistral); 0: all. Ours reads all, and the context ends
    there."""
    mlp_bias: bool = False
    rms_norm_eps: Positive = 1e-6
    rope_theta: Positive = 10_000.0
    rope_scaling: RopeScaling | None = None
    initializer_range: Positive = 0.02
    num_experts: Natural = 0
    """Routed experts of each MoE layer; 0: a dense model."""
    num_experts_per_tok: Natural = 0
    """Routed experts that each token takes."""
    moe_intermediate_size: Natural = 0
    """Width of one expert."""
    n_shared_experts: Natural = 0
    """Experts that every token takes as well, fused into one of that many times the width."""
    first_k_dense_replace: Natural = 0
    """So many of the first layers are dense."""
    norm_topk_prob: bool = True
    """The weights of a token's routed experts add up to 1; if not, they are the router's probabilities."""

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
        if not any(fits(self) for fits in _DENSE.values()):
            given = [name for name in _VARIANTS if getattr(self, name)]
            raise ValueError(f"no published architecture has {' and '.join(given)} together; remove one of them")
        if self.num_experts:
            self._check_experts()
        else:
            for field in dataclasses.fields(self):
                if field.name in _OF_EXPERTS and getattr(self, field.name) != field.default:
                    raise ValueError(
                        f"{field.name}={getattr(self, field.name)} needs experts; set num_experts, or remove it"
                    )
        return self

    def _check_experts(self) -> None:
        routed, taken, dense = self.num_experts, self.num_experts_per_tok, self.first_k_dense_replace
        if not 1 <= taken <= routed:
            raise ValueError(f"num_experts_per_tok={taken} must be between 1 and num_experts={routed}")
        if not self.moe_intermediate_size:
            raise ValueError(f"num_experts={routed} needs moe_intermediate_size, the width of one expert, e.g. 256")
        if dense >= self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace={dense} leaves no layer of num_hidden_layers={self.num_hidden_layers} for the "
                "experts; lower it, or set num_experts=0"
            )
        for name in _VARIANTS:
            if getattr(self, name):
                raise ValueError(f"{name}=true with experts exists in no format that we write; remove it")

    def has_experts(self, layer: int) -> bool:
        """Whether layer number `layer` is a mixture of experts."""
        return self.num_experts > 0 and layer >= self.first_k_dense_replace

    def for_tokenizer(self, vocab_size: int) -> "ModelConfig":
        """This shape with at least `vocab_size` embedding rows."""
        if self.vocab_size and self.vocab_size < vocab_size:
            raise UserError(
                f"vocab_size={self.vocab_size} is smaller than the tokenizer's {vocab_size}; remove it or raise it"
            )
        return dataclasses.replace(self, vocab_size=self.vocab_size or vocab_size)


# Fields that say something only about experts.
_OF_EXPERTS = (
    "num_experts_per_tok moe_intermediate_size n_shared_experts first_k_dense_replace norm_topk_prob"
).split()


_VARIANTS = ("qk_norm", "attention_bias", "qkv_bias", "mlp_bias", "sliding_window")
"""Fields by which dense families differ."""


def _has_only(*names: str) -> Callable[[ModelConfig], bool]:
    return lambda shape: not any(getattr(shape, name) for name in _VARIANTS if name not in names)


_DENSE: dict[str, Callable[[ModelConfig], bool]] = {
    "llama": _has_only("attention_bias", "mlp_bias"),
    "qwen3": _has_only("qk_norm", "attention_bias"),
    "qwen2": _has_only("qkv_bias"),
    "mistral": _has_only("sliding_window"),
}
"""By model_type: whether it can be of a shape. The first that can is chosen."""


# ---- config.json -----------------------------------------------------------------------------------------------------

# Fields that mean and are named the same in all families.
_SAME = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size "
    "max_position_embeddings tie_word_embeddings rms_norm_eps initializer_range"
).split()


class Family(NamedTuple):
    """How config.json of one family spells a ModelConfig."""

    architecture: str
    """The class in transformers."""
    names: dict[str, str]
    """Our name -> its name, of the fields that are not in all families."""
    assumed: dict[str, Any]
    """By our names, what transformers assumes where config.json is silent."""
    constants: dict[str, Any] = {}  # noqa: RUF012  never changed
    """Written as they are."""


FAMILIES = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        names={"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
        assumed={"vocab_size": 32000, "max_position_embeddings": 2048},
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        names={"attention_bias": "attention_bias"},
        assumed={"vocab_size": 151936, "max_position_embeddings": 32768, "head_dim": 128},
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        names={},
        assumed={"vocab_size": 151936, "max_position_embeddings": 32768, "num_key_value_heads": 32},
        constants={"use_sliding_window": False},
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        names={},
        assumed={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "ernie4_5_moe": Family(
        architecture="Ernie4_5_MoeForCausalLM",
        names=dict(
            num_experts="moe_num_experts", num_experts_per_tok="moe_k", moe_intermediate_size="moe_intermediate_size",
            n_shared_experts="moe_num_shared_experts", first_k_dense_replace="moe_layer_start_index",
        ),
        assumed=dict(
            vocab_size=103424, max_position_embeddings=131072, tie_word_embeddings=True, rms_norm_eps=1e-5,
            rope_theta=500_000.0, num_experts=64, num_experts_per_tok=6, moe_intermediate_size=1536,
            n_shared_experts=2, first_k_dense_replace=1,
        ),
        constants={"use_bias": False, "moe_layer_interval": 1, "moe_norm_min": 1e-12, "output_router_logits": False},
    ),
    "qwen2_moe": Family(
        architecture="Qwen2MoeForCausalLM",
        names={n: n for n in ("num_experts", "num_experts_per_tok", "norm_topk_prob", "moe_intermediate_size")},
        assumed=dict(
            vocab_size=151936, max_position_embeddings=32768, num_experts=60, num_experts_per_tok=4,
            moe_intermediate_size=1408,
        ),
        # All biases are zero; vLLM reads them without asking.
        constants=dict(decoder_sparse_step=1, qkv_bias=True, use_sliding_window=False, output_router_logits=False),
    ),
}  # fmt: skip
"""By model_type: every family that we read and write."""


def model_type(shape: ModelConfig) -> str:
    """The family that a model of this shape is written as."""
    if shape.num_experts:
        return "ernie4_5_moe" if shape.norm_topk_prob else "qwen2_moe"
    return next(kind for kind, fits in _DENSE.items() if fits(shape))


def to_hf(shape: ModelConfig, kind: str | None = None) -> dict:
    """The content of config.json, of a float32 model of the family `kind` (by default `model_type`), without special
    tokens.

    `rope_theta` and `rope_scaling` are for readers older than transformers 5.
    """
    kind = kind or model_type(shape)
    family = FAMILIES[kind]
    out: dict = {
        "architectures": [family.architecture],
        "model_type": kind,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    out |= {name: getattr(shape, name) for name in _SAME}
    out |= {theirs: getattr(shape, ours) for ours, theirs in family.names.items()} | family.constants
    if kind == "ernie4_5_moe":
        out["moe_layer_end_index"] = shape.num_hidden_layers - 1
    elif kind == "qwen2_moe":
        out["shared_expert_intermediate_size"] = shape.n_shared_experts * shape.moe_intermediate_size
        out["mlp_only_layers"] = list(range(shape.first_k_dense_replace))
    elif kind == "mistral":
        out["sliding_window"] = shape.sliding_window or None
    rope: dict = {"rope_type": "default"}
    if shape.rope_scaling:
        rope = {k: v for k, v in dataclasses.asdict(shape.rope_scaling).items() if v is not None}
        out["rope_scaling"] = rope
    out["rope_theta"] = shape.rope_theta
    out["rope_parameters"] = rope | {"rope_theta": shape.rope_theta}
    return out


def _special_values(kind: str, hf: dict, width: int) -> dict:
    """The fields that are not spelled one to one. `width`: of one expert. ValueError for what we do not have."""
    if kind == "qwen3":
        return {"qk_norm": True}
    if kind == "qwen2":
        return {"qkv_bias": True}
    if kind == "mistral":
        return {"sliding_window": hf.get("sliding_window", FAMILIES[kind].assumed["sliding_window"]) or 0}
    if kind == "ernie4_5_moe":
        if hf.get("use_bias"):
            raise ValueError("use_bias=true is not supported with experts")
        last = hf.get("moe_layer_end_index", -1)
        if last not in (-1, hf["num_hidden_layers"] - 1) or hf.get("moe_layer_interval", 1) != 1:
            raise ValueError("only the first layers may be dense (moe_layer_end_index=-1, moe_layer_interval=1)")
    if kind == "qwen2_moe":
        dense = sorted(hf.get("mlp_only_layers") or [])
        if dense != list(range(len(dense))) or hf.get("decoder_sparse_step", 1) != 1:
            raise ValueError("only the first layers may be dense (mlp_only_layers=[0, 1, ...], decoder_sparse_step=1)")
        shared = hf.get("shared_expert_intermediate_size", 5632)
        if width and shared % width:
            raise ValueError(
                f"shared_expert_intermediate_size={shared} is not a multiple of moe_intermediate_size={width}"
            )
        return {"n_shared_experts": shared // width if width else 0, "first_k_dense_replace": len(dense)}
    return {}


def from_hf(hf: dict, source: str) -> ModelConfig:
    """The reverse of `to_hf`; also reads what transformers 4 and 5 write for these families.

    `source` names the directory in errors. Raises Unsupported for settings that we do not have.
    """
    kind = hf["model_type"]
    if hf.get("hidden_act", "silu") != "silu":
        raise Unsupported(f"{source}: hidden_act={hf['hidden_act']!r} is not supported, only silu")
    if hf.get("use_sliding_window") or "sliding_attention" in (hf.get("layer_types") or ()):
        raise Unsupported(f"{source}: sliding-window attention is not supported; set use_sliding_window to false")
    family = FAMILIES[kind]
    assumed = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10_000.0} | family.assumed
    names = {name: name for name in _SAME} | family.names
    values: dict = {ours: hf.get(theirs, assumed.get(ours)) for ours, theirs in names.items()}
    values["num_key_value_heads"] = values["num_key_value_heads"] or values["num_attention_heads"]
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias", "norm_topk_prob"):
        if name in values:
            values[name] = bool(values[name])
    values = {name: value for name, value in values.items() if value is not None or name not in _SAME}
    rope = dict(hf.get("rope_parameters") or {}) or dict(hf.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or hf.get("rope_theta") or assumed["rope_theta"]
    scaled: Any = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise Unsupported(f"{source}: partial rotary embeddings are not supported")
    try:
        values |= _special_values(kind, hf, values.get("moe_intermediate_size", 0))
        scaling = None if scaled == "default" else RopeScaling(rope_type=scaled, **rope)
        return ModelConfig(**values, rope_theta=theta, rope_scaling=scaling)
    except (ValueError, TypeError, KeyError) as error:
        raise Unsupported(f"{source}: config.json does not describe a model that we implement: {error}") from error
