"""Steps of generation: by the kernel and by PyTorch's operations, of every shape, against the full forward pass."""

import pytest
import torch

from mengya.errors import UserError
from mengya.model.language_model import Span
from mengya.model.native import kernel_steps, kernels, steps
from mengya.model.native.config import ModelConfig
from mengya.model.native.kernel_steps import KernelSteps, why_not
from mengya.model.native.steps import TorchSteps
from mengya.model.native.transformer import CausalLM

from .conftest import in_pieces

SHAPE = dict(
    vocab_size=101, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=90, max_position_embeddings=128,
)  # fmt: skip
EXPERTS = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=34, first_k_dense_replace=1)
SHAPES = {
    "plain": {},
    "norms": dict(qk_norm=True),
    "biases": dict(attention_bias=True, mlp_bias=True),
    "qkv-biases": dict(qkv_bias=True),
    "untied": dict(tie_word_embeddings=False),
    "one-head-of-keys": dict(num_attention_heads=7, num_key_value_heads=1, head_dim=16),
    "three-to-one": dict(num_attention_heads=6, num_key_value_heads=2, head_dim=48),
    "wide-heads": dict(num_attention_heads=2, num_key_value_heads=2, head_dim=128),
    "yarn": dict(rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)),
    "window": dict(sliding_window=100),
    "mixture": EXPERTS | dict(n_shared_experts=1, norm_topk_prob=True),
    "mixture-unnormalised": EXPERTS | dict(n_shared_experts=2, norm_topk_prob=False, num_experts_per_tok=3),
    "mixture-alone": EXPERTS | dict(n_shared_experts=0, norm_topk_prob=True, first_k_dense_replace=0),
}
PLAN = [(33, 1, 0), (1, 20, 64), (36, 49, 6)]
needs_kernel = pytest.mark.skipif(kernels.library("generation") is None, reason="needs a C++ compiler and AVX2")


def make(**changes) -> CausalLM:
    generator = torch.Generator().manual_seed(0)
    model = CausalLM(ModelConfig(**(SHAPE | dict(initializer_range=0.1) | changes)))
    model.initialize(generator)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("bias", "norm.weight")):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def rows_of(count: int = 3, length: int = 70) -> list[list[int]]:
    return torch.randint(0, 101, (count, length), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("by", [pytest.param(KernelSteps, marks=needs_kernel), TorchSteps])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_the_full_forward_pass(shape: str, by: type) -> None:
    model, rows = make(**SHAPES[shape]), rows_of()
    made = by(model, 20, "exact") if by is KernelSteps else by(model, 20)
    assert why_not(model) is None or kernels.library("generation") is None
    with torch.no_grad():
        expected = model(torch.tensor(rows))
    for found, logits in zip(in_pieces(made, rows, PLAN), expected, strict=True):
        torch.testing.assert_close(found, logits, atol=2e-5, rtol=1e-4)


@needs_kernel
@pytest.mark.parametrize("weights", ["exact", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", ["plain", "mixture", "three-to-one"])
def test_the_kernel_gives_the_same_bits_beside_any_others(shape: str, weights: str) -> None:
    """However a prompt is cut, whatever is computed with it, and by however many threads."""
    model, rows = make(**SHAPES[shape]), rows_of(9, 40)
    together = in_pieces(KernelSteps(model, 30, weights), rows, [(40,) * 9])
    apart = in_pieces(KernelSteps(model, 30, weights), rows, [(7,) * 9, (1,) * 9, (32,) * 9])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = in_pieces(
            KernelSteps(model, 30, weights), rows, [(40, 0, 3, 0, 0, 0, 0, 9, 0), (0, *[40, 37], *[40] * 4, 31, 40)]
        )
        alone = [in_pieces(KernelSteps(model, 3, weights), [row], [(1,)] * 40)[0] for row in rows[:2]]
    finally:
        torch.set_num_threads(threads)
    for number, logits in enumerate(together):
        assert torch.equal(logits, apart[number]) and torch.equal(logits, threaded[number])
    assert torch.equal(alone[0], together[0]) and torch.equal(alone[1], together[1])


@needs_kernel
def test_weights_of_bfloat16_are_computed_in_float32() -> None:
    model, rows = make().to(torch.bfloat16), rows_of()
    found = in_pieces(KernelSteps(model, 20, "exact"), rows, PLAN)
    wide = model.float()
    kept = in_pieces(KernelSteps(wide, 20, "exact"), rows, PLAN)
    with torch.no_grad():
        expected = wide(torch.tensor(rows))
    for a, b, logits in zip(found, kept, expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, logits, atol=2e-5, rtol=1e-4)


def rounded_to_int8(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


def rounded_to_bfloat16(weight: torch.Tensor) -> torch.Tensor:
    return weight.bfloat16().float()


@needs_kernel
@pytest.mark.parametrize(
    ("weights", "rounded", "atol"), [("int8", rounded_to_int8, 1e-1), ("bfloat16", rounded_to_bfloat16, 5e-2)]
)
def test_little_is_rounded_but_weights(weights, rounded, atol) -> None:
    """Keys and values, and what the weights meet, are rounded, too."""
    model, rows = make(), rows_of()
    found = in_pieces(KernelSteps(model, 20, weights), rows, PLAN)
    other = make(tie_word_embeddings=False)
    other.load_state_dict(model.state_dict() | {"lm_head.weight": model.output_weight})
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if name.endswith(("proj.weight", "lm_head.weight")):
                weight.copy_(rounded(weight))
        expected = other(torch.tensor(rows))
    for logits, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, wanted, atol=atol, rtol=1e-2)
        assert (logits - wanted).abs().mean() < atol / 5


@needs_kernel
def test_sums_of_long_rows_stay_within_32_bits() -> None:
    """Nine thousand times the largest weight and the largest activation."""
    model, rows = make(intermediate_size=9000, num_hidden_layers=1), rows_of()
    mlp = model.model.layers[0].mlp
    with torch.no_grad():
        for layer in (mlp.gate_proj, mlp.up_proj):
            layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))
        mlp.down_proj.weight.fill_(1e-5)
        expected = model(torch.tensor(rows))
    for logits, wanted in zip(in_pieces(KernelSteps(model, 20, "int8"), rows, PLAN), expected, strict=True):
        torch.testing.assert_close(logits, wanted, atol=6e-2, rtol=2e-2)


def test_int8_without_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "why_not", lambda model: "there is no compiler")
    with pytest.raises(UserError, match="weights='int8' cannot be used here: there is no compiler; leave it out"):
        make().steps(64, "int8")


def test_shapes_that_the_kernel_does_not_take() -> None:
    for changes in (dict(hidden_size=40), dict(head_dim=8), dict(intermediate_size=91)):
        assert "not" in (why_not(make(**changes)) or "")
    assert isinstance(make(head_dim=8).steps(64), TorchSteps)
    assert kernel_steps._BLOCK == steps.BLOCK


def test_only_what_is_wanted_is_projected() -> None:
    made, rows = make().steps(64), rows_of(2, 10)
    spans = [Span(0, rows[0], 0, [0], 0), Span(1, rows[1], 0, [1], 2)]
    with torch.no_grad():
        expected = make()(torch.tensor(rows[1:]))[0, -2:]
    torch.testing.assert_close(made.run(spans), expected, atol=2e-5, rtol=1e-4)
    nothing = make().steps(64).run([Span(0, rows[0], 0, [0], 0)])
    assert nothing.shape == (0, 101)
