"""The decoder of the families in config.py, with Hugging Face's parameter names.

Pre-norm residual blocks of RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), rotary grouped-query attention
(Ainslie et al. 2023, arXiv:2305.13245) and SwiGLU (Shazeer 2020, arXiv:2002.05202), as in Llama 2 (arXiv:2307.09288)
and Qwen3 (arXiv:2505.09388). Parameters may be float32 while activations are bfloat16: every product casts its weights,
norms and rotations compute in float32.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from mengya.errors import UserError
from mengya.model.compiling import compiled, recomputed
from mengya.model.language_model import LanguageModel, Routing, Steps
from mengya.model.native.attention import document_mask, packed_attention, uses_kernel
from mengya.model.native.config import ModelConfig, from_hf, model_type, to_hf
from mengya.model.native.families import from_disk, to_disk
from mengya.model.native.linear import project, project_joined, swiglu
from mengya.model.native.moe import MoE, Router
from mengya.model.native.rope import RotaryEmbedding, apply_rotary
from mengya.model.native.steps import steps_of
from mengya.model.precision import Weights
from mengya.model.vocabulary import grown_rows

Tables = tuple[Tensor, Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(1, N, heads, D) queries, keys and values of new tokens -> (1, N, H, D)."""
AttendIn = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""The same, in the layer of a number."""


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self._normed, x)

    def _normed(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.float()).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        size, bias = config.hidden_size, config.attention_bias or config.qkv_bias
        self.q_proj = nn.Linear(size, self.heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(size, self.kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(size, self.kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, size, bias=config.attention_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Tables, starts: Tensor | None, mask: Tensor | None) -> Tensor:
        qkv = project_joined(x, self.q_proj, self.k_proj, self.v_proj).unflatten(-1, (-1, self.head_dim))
        if hasattr(self, "q_norm"):
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
            qkv = torch.cat((self.q_norm(q), self.k_norm(k), v), dim=2)
        return project(packed_attention(qkv, self.kv_heads, *rope, starts, mask).flatten(2), self.o_proj)[0]

    def step(self, x: Tensor, rope: Tables, attend: Attend) -> Tensor:
        """As forward; `attend` remembers the keys and values, and knows those of before."""
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in project(x, self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        out = attend(apply_rotary(q, *rope), apply_rotary(k, *rope), v)
        return project(out.flatten(2), self.o_proj)[0]


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, inner: int):
        super().__init__()
        size, bias = config.hidden_size, config.mlp_bias
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x, self.gate_proj, self.up_proj, self.down_proj)


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(config)
        if config.has_experts(layer):
            shared = config.n_shared_experts * config.moe_intermediate_size
            self.mlp: nn.Module = MoE(config, MLP(config, shared) if shared else None)
        else:
            self.mlp = MLP(config, config.intermediate_size)
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

    def step(self, x: Tensor, rope: Tables, attend: Attend) -> Tensor:
        x = x + self.self_attn.step(self.input_layernorm(x), rope, attend)
        return self._add_mlp(x)[0]


class Decoder(nn.Module):
    """Token ids to normalised hidden states; everything but the output projection."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        # Zeros until `initialize` or a file fills them: its own numbers, on the device "meta", import the compiler.
        zeros = torch.zeros(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(zeros, freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rope = RotaryEmbedding(config)
        self.head_dim = config.head_dim

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None, starts: Tensor | None, dtype: torch.dtype | None
    ) -> tuple[Tensor, list[Routing]]:
        """(B, T) ids -> (B, T, hidden_size) of `dtype`, and the decisions of every router; see LanguageModel.hidden."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x, rope = self._embed(input_ids, position_ids, dtype)
        native = uses_kernel(x.device.type, x.dtype, self.head_dim)
        mask = None if starts is None or native else document_mask(starts)
        routings = []
        for layer in self.layers:
            x, routing = layer(x, rope, starts, mask)
            if routing is not None:
                routings.append(routing)
        return self.norm(x), routings

    def step(self, input_ids: Tensor, position_ids: Tensor, attend: AttendIn, dtype: torch.dtype | None) -> Tensor:
        """(1, N) ids of whatever sequences -> (1, N, hidden_size); `attend` knows which these are."""
        x, rope = self._embed(input_ids, position_ids, dtype)
        for index, layer in enumerate(self.layers):
            x = cast(DecoderLayer, layer).step(x, rope, functools.partial(attend, index))
        return self.norm(x)

    def _embed(self, input_ids: Tensor, position_ids: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tables]:
        x: Tensor = self.embed_tokens(input_ids)
        return x.to(dtype or x.dtype), self.rope(position_ids)


class CausalLM(LanguageModel):
    """The native implementation; state-dict names are those of transformers' classes in memory."""

    def __init__(self, config: ModelConfig, family: str | None = None):
        """`family`: the model_type that a dense model is written as; None: the one that `model_type` chooses."""
        super().__init__()
        self.config, self._family = config, family if family and not config.num_experts else model_type(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._tie()

    def _tie(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @classmethod
    def empty(cls, content: dict, source: str, dtype: torch.dtype, device: str) -> "CausalLM":
        with torch.device("meta"):
            model = cls(from_hf(content, source), content["model_type"])
        model = model.to(dtype)
        for module in model.modules():
            if isinstance(module, Router):  # rounded, close decisions between experts would fall differently
                module.float()
        empty = {name: torch.empty(t.shape, dtype=t.dtype, device=device) for name, t in model.state_dict().items()}
        model.load_state_dict(empty, assign=True)  # as `to_empty`, whose way imports sympy
        model._tie()  # each name got its own storage
        return model

    def description(self) -> dict:
        return to_hf(self.config, self._family)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def context(self) -> int:
        limits = self.config.max_position_embeddings, self.config.sliding_window
        return min(limit for limit in limits if limit)

    def hidden(
        self, *, input_ids: Tensor, position_ids: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, list[Routing]]:
        return self.model(input_ids, position_ids, starts, self.compute_dtype)

    @property
    def output_weight(self) -> Tensor:
        if type_before_parametrizations(self.lm_head) is not nn.Linear:
            raise UserError(
                f"lm_head is wrapped in {type(self.lm_head).__name__}, which the output projection would pass over; "
                "leave lm_head out of what the adapter changes"
            )
        return self.lm_head.weight

    @property
    def input_embedding(self) -> nn.Module:
        return self.model.embed_tokens

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.layers)

    def compile_blocks(self) -> None:
        super().compile_blocks()
        norm = self.model.norm
        norm.forward = compiled(norm.forward, dynamic=False)  # type: ignore[method-assign]

    def flops_per_token(self, context: float) -> float:
        """6 for each weight of a matrix product, and 12 x layers x attention width x context.

        As in PaLM's appendix B (Chowdhery et al. 2022, arXiv:2204.02311), of the active parameters. The embedding is
        looked up, so that it does not count; the output projection does.
        """
        c = self.config
        inner, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        attention = c.hidden_size * (2 * inner + 2 * kv)
        expert = 3 * c.hidden_size * c.moe_intermediate_size
        sparse = c.hidden_size * c.num_experts + (c.num_experts_per_tok + c.n_shared_experts) * expert
        dense = 3 * c.hidden_size * c.intermediate_size
        layers = [attention + (sparse if c.has_experts(i) else dense) for i in range(c.num_hidden_layers)]
        products = sum(layers) + c.hidden_size * c.vocab_size
        return 6.0 * products + 12.0 * c.num_hidden_layers * inner * context

    def active_parameters(self) -> int:
        c = self.config
        idle = (c.num_experts - c.num_experts_per_tok) * 3 * c.hidden_size * c.moe_intermediate_size
        return self.all_parameters() - sum(map(c.has_experts, range(c.num_hidden_layers))) * idle

    @property
    def has_experts(self) -> bool:
        return self.config.num_experts > 0

    def selection_biases(self) -> list[Tensor]:
        routers = [module for module in self.modules() if isinstance(module, Router) and module.normalised]
        return [router.moe_statics.e_score_correction_bias for router in routers]

    @property
    def cache_bytes(self) -> int:
        c = self.config
        return 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 4

    @property
    def embedding_weight(self) -> Tensor:
        """(V, C)."""
        return self.model.embed_tokens.weight

    def rotation(self, position_ids: Tensor) -> Tables:
        """As RotaryEmbedding."""
        return self.model.rope(position_ids)

    def steps(self, tokens: int, weights: Weights = "exact") -> Steps:
        return steps_of(self, tokens, weights)

    @torch.no_grad()
    def grow_vocabulary(self, first: int, pieces: Sequence[Sequence[int]]) -> None:
        """A model that has spare rows after its vocabulary uses them up first."""
        embedding = grown_rows(self.model.embed_tokens.weight, first, pieces)
        if not self.config.tie_word_embeddings:
            self.lm_head.weight = nn.Parameter(grown_rows(self.lm_head.weight, first, pieces))
        self.model.embed_tokens = nn.Embedding.from_pretrained(embedding, freeze=False)
        self.lm_head.out_features = len(embedding)
        self.config = dataclasses.replace(self.config, vocab_size=len(embedding))
        self._tie()

    def to_disk(self, dtype: torch.dtype | None) -> dict[str, Tensor]:
        wide = ".mlp.gate."  # routers
        state = {n: t.detach().to("cpu", None if wide in n else dtype) for n, t in self.weights().items()}
        return to_disk(state, self.config, self._family)

    def from_disk(self, state: dict[str, Tensor], content: dict, source: str) -> dict[str, Tensor]:
        state = {name: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}
        if self.config.tie_word_embeddings:
            head = state.pop("lm_head.weight", None)
            if head is not None and not torch.equal(head, state.get("model.embed_tokens.weight", head)):
                raise UserError(
                    f"{source}: tie_word_embeddings is true, but lm_head.weight is not the embedding; set it to false"
                )
        return from_disk(state, self.config, content["model_type"], source)

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
