"""A step of generation as one call of kernels/generation.cpp: float32 activations over weights of their own type.

A matrix whose numbers all fit into bfloat16, as those of a model that is stored so, is kept in it whatever type it is
loaded in: that halves the memory to be read, and the products are the same.
"""

import contextlib
import ctypes
import math
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mengya.model.language_model import Span
from mengya.model.native import kernels
from mengya.model.native.kernels import GenerationProblem, Layer, Matrix
from mengya.model.native.linear import is_plain
from mengya.model.native.moe import MoE
from mengya.model.precision import Weights

if TYPE_CHECKING:
    from mengya.model.native.transformer import CausalLM

_BLOCK = 16
"""kBlock of the kernel."""
_HEADS = 4
"""The largest kHeads."""
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 3}
_BFLOAT_PAIRS = 2
"""Weights in bfloat16 that meet activations rounded to it."""
_READ = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
"""Layers whose weights are read; experts have parameters of such names."""
_WIDEST = 32
"""Outputs of a panel where vectors are widest."""


def why_not(model: "CausalLM") -> str | None:
    """Why the kernel cannot compute this model; None if it can. The first call builds it."""
    config = model.config
    if model.device.type != "cpu":
        return "the model is not on a CPU"
    sizes = config.intermediate_size, config.moe_intermediate_size
    if config.hidden_size % _WIDEST or config.head_dim % 16 or any(size % 2 for size in sizes):
        return "hidden_size is not a multiple of 32, head_dim not one of 16, or an intermediate size is odd"
    read = [getattr(module, name, None) for module in model.modules() for name in _READ]
    if not is_plain(*(layer for layer in read if isinstance(layer, nn.Module))):
        return "some of its layers were changed, as by an adapter that is not merged into it"
    if kernels.library("generation") is None:
        return "there is no C++ compiler, or the processor has no AVX2"
    return None


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """In large pages where the system has them: sequences are scattered over all of it. Written at once, so that the
    memory is there, or missing, when the engine starts and not under load."""
    memory = mmap.mmap(-1, dtype.itemsize * math.prod(shape))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape).zero_()


class KernelSteps:
    block, shares = _BLOCK, True

    def __init__(self, model: "CausalLM", blocks: int, weights: Weights):
        """Copies the weights into the kernel's order; the model itself is only needed for its embedding."""
        config = model.config
        self.blocks = blocks
        self._kept: list[Any] = []
        """What the kernel has pointers to."""
        self._weights = weights
        library = kernels.library("generation")
        assert library is not None
        self._panel = library.panel()
        self._pairs = weights == "bfloat16" and bool(library.multiplies_bfloat())
        self._int8_inputs = library.int8_inputs()
        self._heads, self._size = config.num_attention_heads, config.hidden_size
        self._top_k = config.num_experts_per_tok if config.num_experts else 0
        self._vocab_size = config.vocab_size
        shape = (config.num_hidden_layers, blocks, config.num_key_value_heads, config.head_dim, _BLOCK)
        wide = weights == "exact"
        self._keys, self._values = (_zeros(shape, torch.float32 if wide else torch.bfloat16) for _ in range(2))
        context = min(config.max_position_embeddings, blocks * _BLOCK)
        cos, sin = (table[0, :, 0].contiguous() for table in model.rotation(torch.arange(context)[None]))
        layers = (Layer * config.num_hidden_layers)(*map(self._layer, model.blocks()))
        head = self._packed(model.output_weight, None)
        embedding = model.embedding_weight
        embedding = embedding if embedding.dtype == torch.bfloat16 else embedding.float()
        q_size = self._heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self._wide_row = self._row(max(q_size + 2 * kv_size, self._size))
        self._inner_row = self._row(
            max(
                config.intermediate_size,
                config.moe_intermediate_size * max(1, config.n_shared_experts),
                config.num_experts,
            )
        )
        self._logits_row = self._padded(config.vocab_size)
        self._problem = GenerationProblem(
            layers=config.num_hidden_layers, size=self._size, heads=self._heads, kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim, blocks=blocks, experts=config.num_experts, top_k=self._top_k,
            normalised=config.norm_topk_prob, wide_embedding=embedding.dtype == torch.float32,
            wide_cache=wide, eps=config.rms_norm_eps,
            scale=config.head_dim**-0.5, layer=ctypes.addressof(layers), head=ctypes.addressof(head),
            embedding=self._pointer(embedding), norm=self._pointer(model.model.norm.weight.float()),
            cos=self._pointer(cos), sin=self._pointer(sin), keys=self._keys.data_ptr(), values=self._values.data_ptr(),
            wide_row=self._wide_row, inner_row=self._inner_row,
        )  # fmt: skip
        self._kept += [layers, head]
        self._room, self._table_size = 0, 0

    def forget(self, sequence: int) -> None:
        pass

    def run(self, spans: Sequence[Span]) -> Tensor:
        counts = [len(span.tokens) for span in spans]
        rows, widest = sum(counts), max(len(span.blocks) for span in spans)
        self._make_room(rows, widest)
        tables = np.zeros((len(spans), widest), dtype=np.int32)
        for row, span in zip(tables, spans, strict=True):
            row[: len(span.blocks)] = span.blocks
        tokens = np.concatenate([np.asarray(span.tokens, dtype=np.int32) for span in spans])
        sequence = np.repeat(np.arange(len(spans), dtype=np.int32), counts)
        first = np.cumsum(counts) - counts
        starts = np.array([span.start for span in spans])
        positions = (np.arange(rows) + np.repeat(starts - first, counts)).astype(np.int32)
        outputs = np.array([span.outputs for span in spans])
        total = int(outputs.sum())
        lasts = np.repeat(first + counts - outputs, outputs) + np.arange(total)
        wanted = (lasts - np.repeat(np.cumsum(outputs) - outputs, outputs)).astype(np.int32)
        logits = torch.empty(total, self._logits_row)
        problem = self._problem
        problem.rows, problem.outputs, problem.table_size = rows, total, widest
        problem.threads = torch.get_num_threads()
        problem.tokens, problem.positions = tokens.ctypes.data, positions.ctypes.data
        problem.sequence, problem.tables = sequence.ctypes.data, tables.ctypes.data
        problem.wanted, problem.logits = wanted.ctypes.data, logits.data_ptr()
        kernels.call("generation", "step", problem)
        return logits[:, : self._vocab_size]

    def _make_room(self, rows: int, widest: int) -> None:
        """Scratch memory for a step of so many rows, and sequences of so many blocks."""
        problem, pairs = self._problem, max(1, self._top_k)
        if rows > self._room:
            self._room = max(rows, 2 * self._room)
            sizes = {
                "x": self._size, "h": self._wide_row, "wide": self._wide_row * pairs, "inner": self._inner_row * pairs,
                "gathered": self._wide_row * self._top_k, "weights": self._top_k,
            }  # fmt: skip
            self._scratch = {name: torch.empty(self._room * size) for name, size in sizes.items()}
            for name in ("chosen", "order"):
                self._scratch[name] = torch.empty(self._room * self._top_k, dtype=torch.int32)
            self._scratch["ends"] = torch.empty(problem.experts, dtype=torch.int32)
            for name, tensor in self._scratch.items():
                setattr(problem, name, tensor.data_ptr())
        if widest > self._table_size:
            self._table_size = max(widest, 2 * self._table_size)
            self._scores = torch.empty(torch.get_num_threads() * _HEADS * self._table_size * _BLOCK)
            problem.scores = self._scores.data_ptr()

    # ---- weights -----------------------------------------------------------------------------------------------------

    def _padded(self, outputs: int) -> int:
        return -(-outputs // self._panel) * self._panel

    def _row(self, entries: int) -> int:
        """An odd number of cache lines: at multiples of a page, the same column of all rows would have one place in the
        cache."""
        return (-(-self._padded(entries) // 16) | 1) * 16

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        found = Layer(
            qkv=self._matrix(attention.q_proj, attention.k_proj, attention.v_proj), out=self._matrix(attention.o_proj),
            before_attention=self._pointer(layer.input_layernorm.weight.float()),
            before_mlp=self._pointer(layer.post_attention_layernorm.weight.float()),
        )  # fmt: skip
        if hasattr(attention, "q_norm"):
            found.q_norm = self._pointer(attention.q_norm.weight.float())
            found.k_norm = self._pointer(attention.k_norm.weight.float())
        if isinstance(mlp, MoE):
            found.router = self._pointer(mlp.gate.weight.float())
            if mlp.gate.normalised:
                found.router_bias = self._pointer(mlp.gate.moe_statics.e_score_correction_bias.float())
            weights = [
                self._packed(weight, None)
                for gate_up, down in zip(mlp.experts.gate_up_proj, mlp.experts.down_proj, strict=True)
                for weight in (*gate_up.chunk(2), down)
            ]
            experts = (Matrix * len(weights))(*weights)
            self._kept.append(experts)
            found.experts = ctypes.addressof(experts)
            mlp = mlp.shared_experts
        if mlp is not None:
            found.gate, found.up, found.down = map(self._matrix, (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        return found

    def _matrix(self, *layers: nn.Linear) -> Matrix:
        """Of linear layers that share their input, side by side."""
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        return self._packed(torch.cat([layer.weight for layer in layers]), bias)

    def _packed(self, weight: Tensor, bias: Tensor | None) -> Matrix:
        """(outputs, depth) in panels: (panels, depth / inputs, panel, inputs)."""
        weight = weight.detach()
        outputs, depth = weight.shape
        scale = None
        if self._weights == "int8":
            weight = weight.float()
            scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)
            weight = (weight / scale[:, None]).round().to(torch.int8)
        elif weight.dtype != torch.bfloat16:
            weight = weight.float()
            if self._weights == "bfloat16" or torch.equal(weight, weight.bfloat16().float()):
                weight = weight.bfloat16()
        inputs = {torch.float32: 1, torch.bfloat16: 2, torch.int8: self._int8_inputs}[weight.dtype]
        rest = self._padded(outputs) - outputs
        panels = nn.functional.pad(weight, (0, -depth % inputs, 0, rest)).unflatten(0, (-1, self._panel))
        packed = panels.unflatten(2, (-1, inputs)).transpose(1, 2)
        if inputs == 4:
            packed = (packed.short() + 128).to(torch.uint8)
        padded = [None if t is None else nn.functional.pad(t.detach().float(), (0, rest)) for t in (scale, bias)]
        return Matrix(
            weight=self._pointer(packed), scale=self._pointer(padded[0]), bias=self._pointer(padded[1]),
            outputs=outputs, depth=depth,
            kind=_BFLOAT_PAIRS if self._pairs and weight.dtype == torch.bfloat16 else _KINDS[weight.dtype],
        )  # fmt: skip
