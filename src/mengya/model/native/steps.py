"""Generation with a native model: its keys and values in blocks, and a step over tokens of many sequences.

By PyTorch's operations wherever those run; `kernel_steps.py` does the same on CPUs, in one call.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mengya.errors import UserError
from mengya.model.language_model import Span, Steps
from mengya.model.native.kernel_steps import KernelSteps, why_not
from mengya.model.precision import Weights

if TYPE_CHECKING:
    from mengya.model.native.transformer import CausalLM

BLOCK = 16


def steps_of(model: "CausalLM", tokens: int, weights: Weights) -> Steps:
    """Whatever is fastest for this model here, with room for so many `tokens`. UserError for weights that are not exact
    where only PyTorch's operations can be used."""
    blocks = -(-tokens // BLOCK)
    reason = why_not(model)
    if reason is None:
        return KernelSteps(model, blocks, weights)
    if weights != "exact":
        raise UserError(f"weights={weights!r} cannot be used here: {reason}; leave it out")
    return TorchSteps(model, blocks)


class TorchSteps:
    block, shares = BLOCK, True

    def __init__(self, model: "CausalLM", blocks: int):
        self._model, self.blocks = model, blocks
        config, weight = model.config, model.output_weight
        shape = (config.num_hidden_layers, blocks * BLOCK, config.num_key_value_heads, config.head_dim)
        dtype = model.compute_dtype or weight.dtype
        self._keys, self._values = (torch.zeros(shape, dtype=dtype, device=weight.device) for _ in range(2))

    def forget(self, sequence: int) -> None:
        pass

    @torch.inference_mode()
    def run(self, spans: Sequence[Span]) -> Tensor:
        device = self._model.device
        places = [self._places(span) for span in spans]
        new = torch.cat([p[span.start :] for p, span in zip(places, spans, strict=True)])
        input_ids = torch.tensor([[token for span in spans for token in span.tokens]], device=device)
        positions = torch.cat([torch.arange(span.start, span.start + len(span.tokens)) for span in spans])[None]
        attention = _Attention(self._keys, self._values, spans, places, new.to(device))
        hidden = self._model.model.step(input_ids, positions.to(device), attention, self._model.compute_dtype)[0]
        ends = accumulate(len(span.tokens) for span in spans)
        wanted = [row for span, end in zip(spans, ends, strict=True) for row in range(end - span.outputs, end)]
        return self._model.logits(hidden[torch.tensor(wanted, dtype=torch.long, device=device)])

    def _places(self, span: Span) -> Tensor:
        """Where the keys of a sequence are, the new ones included."""
        rows = torch.tensor(span.blocks)[:, None] * BLOCK + torch.arange(BLOCK)
        return rows.flatten()[: span.start + len(span.tokens)]


class _Attention:
    """Of one step, in any layer: spans of one token together, each longer one by itself."""

    def __init__(self, keys: Tensor, values: Tensor, spans: Sequence[Span], places: list[Tensor], new: Tensor):
        self._keys, self._values, self._new = keys, values, new
        firsts = [0, *accumulate(len(span.tokens) for span in spans)]
        single = [i for i, span in enumerate(spans) if len(span.tokens) == 1]
        self._longer = [
            (slice(firsts[i], firsts[i + 1]), places[i].to(new.device), _causal(span).to(new.device))
            for i, span in enumerate(spans)
            if len(span.tokens) > 1
        ]
        self._single: tuple[Tensor, Tensor, Tensor] | None = None
        if single:
            rows = torch.nn.utils.rnn.pad_sequence([places[i] for i in single], batch_first=True)
            lengths = torch.tensor([len(places[i]) for i in single])
            mask = torch.arange(rows.shape[1]) < lengths[:, None]
            which = torch.tensor([firsts[i] for i in single])
            self._single = which.to(new.device), rows.to(new.device), mask[:, None, None].to(new.device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self._keys[layer], self._values[layer]
        keys[self._new], values[self._new] = k[0], v[0]
        out = torch.empty_like(q)
        if self._single:
            which, rows, mask = self._single  # (S,), (S, L), (S, 1, 1, L)
            out[0, which] = _attend(q[0, which][:, None], keys[rows], values[rows], mask)[:, 0]
        for where, rows, mask in self._longer:
            out[:, where] = _attend(q[:, where], keys[rows][None], values[rows][None], mask)
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """(B, T, H, D) of queries (B, T, H, D), keys and values (B, L, kv_heads, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped).transpose(1, 2)


def _causal(span: Span) -> Tensor:
    """(T, start + T) True where a new token may look."""
    total = span.start + len(span.tokens)
    return torch.arange(total) <= torch.arange(span.start, total)[:, None]
