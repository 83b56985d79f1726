"""The decoder of the Llama, Qwen3, Ernie-4.5-MoE and Qwen2-MoE families, with Hugging Face's parameter names.

Pre-norm residual blocks of RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), rotary grouped-query attention
(Ainslie et al. 2023, arXiv:2305.13245) and SwiGLU (Shazeer 2020, arXiv:2002.05202), as in Llama 2 (arXiv:2307.09288)
and Qwen3 (arXiv:2505.09388). Parameters may be float32 while activations are bfloat16: every product casts its weights,
norms and rotations compute in float32.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mengya.model.native.attention import document_mask, packed_attention, uses_kernel
from mengya.model.native.cache import KVCache
from mengya.model.native.config import ModelConfig
from mengya.model.native.linear import project, project_joined, swiglu
from mengya.model.native.moe import MoE, Routing
from mengya.model.native.rope import RotaryEmbedding, apply_rotary

Tables = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.float()).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        size, inner, bias = config.hidden_size, self.heads * self.head_dim, config.attention_bias
        self.q_proj = nn.Linear(size, inner, bias=bias)
        self.k_proj = nn.Linear(size, self.kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(size, self.kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(inner, size, bias=bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Tables, starts: Tensor | None, mask: Tensor | None) -> Tensor:
        qkv = project_joined(x, self.q_proj, self.k_proj, self.v_proj).unflatten(-1, (-1, self.head_dim))
        if hasattr(self, "q_norm"):
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
            qkv = torch.cat((self.q_norm(q), self.k_norm(k), v), dim=2)
        return project(packed_attention(qkv, self.kv_heads, *rope, starts, mask).flatten(2), self.o_proj)[0]

    def decode(self, x: Tensor, rope: Tables, mask: Tensor | None, cache: KVCache, layer: int) -> Tensor:
        """As forward, over what the cache holds and x; appends x's keys and values to it."""
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in project(x, self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary(q, *rope), apply_rotary(k, *rope)
        keys, values = cache.write(layer, k, v)
        causal = mask is None and q.shape[1] > 1
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, attn_mask=mask, is_causal=causal, enable_gqa=self.heads != self.kv_heads
        )
        return project(out.transpose(1, 2).flatten(2), self.o_proj)[0]


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, inner: int):
        super().__init__()
        size, bias = config.hidden_size, config.mlp_bias
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x, self.gate_proj, self.up_proj, self.down_proj)


def _feed_forward(config: ModelConfig, layer: int) -> MLP | MoE:
    if not config.has_experts(layer):
        return MLP(config, config.intermediate_size)
    shared = config.n_shared_experts * config.moe_intermediate_size
    return MoE(config, MLP(config, shared) if shared else None)


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = _feed_forward(config, layer)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def _add_mlp(self, x: Tensor) -> tuple[Tensor, Routing | None]:
        out = self.mlp(self.post_attention_layernorm(x))
        return (x + out[0], out[1]) if isinstance(self.mlp, MoE) else (x + out, None)

    def forward(
        self, x: Tensor, rope: Tables, starts: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        x = x + self.self_attn(self.input_layernorm(x), rope, starts, mask)
        return self._add_mlp(x)

    def decode(self, x: Tensor, rope: Tables, mask: Tensor | None, cache: KVCache, layer: int) -> Tensor:
        x = x + self.self_attn.decode(self.input_layernorm(x), rope, mask, cache, layer)
        return self._add_mlp(x)[0]


class Decoder(nn.Module):
    """Token ids to normalised hidden states; everything but the output projection."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rope = RotaryEmbedding(config)
        self.head_dim = config.head_dim
        self.compute_dtype: torch.dtype | None = None
        """Type of the activations; None: that of the weights."""
        self.activation_checkpointing = False
        """Keep a layer's input alone and compute the rest again in the backward pass (Chen et al. 2016, 1604.06174)."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        starts: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """(B, T) ids -> (B, T, hidden_size). `starts` (B, T): column of the first token of each token's document."""
        if cache is None:
            return self.routed(input_ids, position_ids, starts)[0]
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device) + cache.lengths[:, None]
        x, rope = self._embed(input_ids, position_ids)
        cache.check_room(input_ids.shape[1])
        mask = cache.mask(input_ids.shape[1])
        for index, layer in enumerate(self.layers):
            x = cast(DecoderLayer, layer).decode(x, rope, mask, cache, index)
        cache.advance(input_ids.shape[1])
        return self.norm(x)

    def routed(
        self, input_ids: Tensor, position_ids: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, list[Routing]]:
        """As forward without a cache, and the decisions of every router, for the losses that train them."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x, rope = self._embed(input_ids, position_ids)
        served = uses_kernel(x.device.type, x.dtype, self.head_dim)
        mask = None if starts is None or served else document_mask(starts)
        routings = []
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for layer in self.layers:
            if recompute:
                x, routing = checkpoint(layer, x, rope, starts, mask, use_reentrant=False, preserve_rng_state=False)
            else:
                x, routing = layer(x, rope, starts, mask)
            if routing is not None:
                routings.append(routing)
        return self.norm(x), routings

    def _embed(self, input_ids: Tensor, position_ids: Tensor) -> tuple[Tensor, Tables]:
        x: Tensor = self.embed_tokens(input_ids)
        return x.to(self.compute_dtype or x.dtype), self.rope(position_ids)


class CausalLM(nn.Module):
    """A language model; state-dict names are those of transformers' classes in memory."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """(B, T) int64 -> (B, T, V) float32 logits of the next token."""
        hidden = self.model(input_ids, position_ids, starts, cache)
        return project(hidden, self.lm_head)[0].float()

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Normal(0, initializer_range); projections back into the residual stream are scaled by 1/sqrt(2 layers).

        As GPT-2 (Radford et al. 2019) and llama2.c, so that the stream's variance does not grow with depth.
        """
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                residual = name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj"))
                scale = std / math.sqrt(2 * self.config.num_hidden_layers) if residual else std
                parameter.normal_(0.0, scale, generator=generator)


def count_parameters(config: ModelConfig) -> int:
    """Of the whole model; a tied embedding counts once."""
    with torch.device("meta"):
        return sum(p.numel() for p in CausalLM(config).parameters())


def count_active_parameters(config: ModelConfig) -> int:
    """Those that one token passes through: without the routed experts that it does not take."""
    c = config
    idle = (c.num_experts - c.num_experts_per_tok) * 3 * c.hidden_size * c.moe_intermediate_size
    return count_parameters(c) - sum(map(c.has_experts, range(c.num_hidden_layers))) * idle


def flops_per_token(config: ModelConfig, context: float) -> float:
    """Floating-point operations of one training token (forward and backward), `context` keys seen on average.

    6 for each active parameter of a matrix product (the embedding look-up is none, the output projection is one) plus
    12 x layers x attention width x context, as in PaLM's appendix B (Chowdhery et al. 2022, arXiv:2204.02311).
    """
    c = config
    inner, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    attention = c.hidden_size * (2 * inner + 2 * kv)
    expert = 3 * c.hidden_size * c.moe_intermediate_size
    sparse = c.hidden_size * c.num_experts + (c.num_experts_per_tok + c.n_shared_experts) * expert
    dense = 3 * c.hidden_size * c.intermediate_size
    layers = [attention + (sparse if c.has_experts(i) else dense) for i in range(c.num_hidden_layers)]
    products = sum(layers) + c.hidden_size * c.vocab_size
    return 6.0 * products + 12.0 * c.num_hidden_layers * inner * context
