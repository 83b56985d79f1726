"""Activation checkpointing: the same gradients from less memory."""

import pytest
import torch

from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM

SHAPE = dict(
    hidden_size=64, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, intermediate_size=96,
    max_position_embeddings=64, vocab_size=50,
)  # fmt: skip
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1)


def kept_bytes(model: CausalLM, ids: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    """Bytes of activations that the backward pass keeps, and the gradients."""
    kept = {}
    own = {p.data_ptr() for p in model.parameters()}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.numel() * x.element_size()
        return x

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model(ids).logsumexp(-1).sum()
        held = sum(kept.values())
    loss.backward()
    return held, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("extra", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_gradients_from_less_memory(extra, dtype):
    model = CausalLM(ModelConfig(**SHAPE, **extra))
    model.initialize(torch.Generator().manual_seed(0))
    model.compute_dtype = dtype
    ids = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(1))
    all_kept, want = kept_bytes(model, ids)
    model.recompute_blocks()
    few_kept, got = kept_bytes(model, ids)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    assert few_kept < all_kept / 2
