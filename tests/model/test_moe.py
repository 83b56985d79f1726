"""Routing and grouped products against plain references, in every type and way that they run."""

import pytest
import torch
import torch.nn.functional as F

from mengya.model import compiling
from mengya.model.native.config import ModelConfig
from mengya.model.native.moe import Experts, MoE, Router, grouped_linear
from mengya.model.native.transformer import CausalLM

SHAPE = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=72,
    vocab_size=50,
    max_position_embeddings=64,
    num_experts=5,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    n_shared_experts=2,
    first_k_dense_replace=1,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(**changes) -> CausalLM:
    model = CausalLM(ModelConfig(**(SHAPE | changes | {"initializer_range": 0.2})))
    model.initialize(generator())
    return model


def experts(dtype: torch.dtype, **changes) -> Experts:
    layer = make(**changes).model.layers[-1].mlp
    assert isinstance(layer, MoE)
    return layer.experts.to(dtype)


def reference(layer: Experts, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    rows = []
    for token, kinds, shares in zip(x, chosen.tolist(), weights, strict=True):
        row = torch.zeros_like(token)
        for kind, share in zip(kinds, shares, strict=True):
            gate, up = (layer.gate_up_proj[kind] @ token).chunk(2)
            row = row + share * (layer.down_proj[kind] @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def decisions(tokens: int, top_k: int, unused: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert number `unused` is never chosen."""
    scores = torch.rand(tokens, 5, generator=generator(1))
    scores[:, unused] = -1
    return scores.topk(top_k).indices, torch.rand(tokens, top_k, generator=generator(2))


# width 16 is served by torch's grouped product, 13 and float64 by the fallback
@pytest.mark.parametrize("width", [16, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("tokens", "top_k"), [(40, 2), (1, 2), (9, 1), (3, 4)])
def test_experts_and_their_gradients(width, dtype, tokens, top_k):
    ours, plain = (experts(dtype, moe_intermediate_size=width) for _ in range(2))
    chosen, weights = decisions(tokens, top_k)
    x = torch.randn(tokens, 32, generator=generator(3)).to(dtype)
    upstream = torch.randn(tokens, 32, generator=generator(4)).to(dtype)
    found = []
    for layer, function in ((ours, ours), (plain, lambda *values: reference(plain, *values))):
        leaves = [x.clone().requires_grad_(), weights.to(dtype).requires_grad_()]
        out = function(leaves[0], chosen, leaves[1])
        out.backward(upstream)
        found.append([out, *(t.grad for t in (*leaves, layer.gate_up_proj, layer.down_proj))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not ours.down_proj.grad[4].any()  # no token, no gradient, and nothing that was left in memory


@pytest.mark.parametrize("width", [16, 32])  # the gradient of the wider ones is the native kernel's, where there is one
def test_bfloat16_is_close(width):
    chosen, weights = decisions(300, 2)
    x = torch.randn(300, 32, generator=generator(3))
    upstream = torch.randn(300, 32, generator=generator(4))
    exact, layer = (experts(torch.float32, moe_intermediate_size=width) for _ in range(2))
    expected = reference(exact, x, chosen, weights)
    expected.backward(upstream)
    out = layer(x.bfloat16(), chosen, weights)  # the weights stay wide and are cast
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).norm() < 0.01 * expected.norm()
    out.backward(upstream.bfloat16())
    for ours, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
        assert ours.grad.dtype == torch.float32 and not ours.grad[4].any()
        assert (ours.grad - theirs.grad).norm() < 0.02 * theirs.grad.norm()


@pytest.mark.parametrize("counts", [[3, 0, 4], [0, 0, 7], [7, 0, 0], [1, 5, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_grouped_linear_with_empty_groups(counts, dtype):
    x = torch.randn(7, 8, generator=generator()).to(dtype).requires_grad_()
    weight = torch.randn(3, 16, 8, generator=generator(1)).to(dtype).requires_grad_()
    ends = torch.tensor(counts).cumsum(0).int()
    out = grouped_linear(x, weight, ends)
    expected = torch.cat([rows @ w.T for rows, w in zip(x.split(counts), weight, strict=True)])
    tolerance = dict(rtol=2e-2, atol=2e-2) if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(out, expected, **tolerance)
    upstream = torch.randn(7, 16, generator=generator(2)).to(dtype)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight), upstream) for y in (out, expected)), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_gradcheck():
    layer = experts(torch.float64)
    chosen, weights = decisions(6, 2)
    x = torch.randn(6, 32, generator=generator(3), dtype=torch.float64)
    inputs = (x.requires_grad_(), weights.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: layer(x, chosen, w), inputs)


def test_custom_operators_pass_torch_checks():
    x = torch.randn(7, 8)
    weight, ends = torch.randn(3, 16, 8), torch.tensor([3, 3, 7], dtype=torch.int32)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.mengya.grouped_product, (x, weight, ends, True), test_utils=checks)
    torch.library.opcheck(torch.ops.mengya.grouped_outer, (torch.randn(7, 16), x, ends), test_utils=checks)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_router_is_a_softmax_over_all_experts(normalised):
    router = Router(ModelConfig(**(SHAPE | {"norm_topk_prob": normalised})))
    torch.nn.init.normal_(router.weight, generator=generator())
    x = torch.randn(20, 32, generator=generator(1))
    _, chosen, weights = router(x)
    probabilities = (x.double() @ router.weight.double().T).softmax(-1)
    expected = probabilities.gather(-1, chosen)
    assert torch.equal(chosen.sort().values, probabilities.topk(2).indices.sort().values)
    if normalised:
        expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)
    assert router(x.bfloat16())[0].dtype == router(x.bfloat16())[2].dtype == torch.float32


def test_the_selection_bias_changes_the_selection_and_not_the_weights():
    router = Router(ModelConfig(**SHAPE))
    torch.nn.init.normal_(router.weight, std=0.1, generator=generator())
    x = torch.randn(20, 32, generator=generator(1))
    with torch.no_grad():
        before = router(x)
        router.moe_statics.e_score_correction_bias[0, 3] = 10.0
        logits, chosen, weights = router(x)
    assert torch.equal(logits, before[0]) and not torch.equal(chosen, before[1])
    assert (chosen[:, 0] == 3).all()
    expected = logits.softmax(-1).gather(-1, chosen)
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True))
    router.moe_statics.e_score_correction_bias.fill_(0.7)  # the same for all
    assert torch.equal(router(x)[1], before[1])


def test_same_bits_on_every_run_and_thread_count():
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            model = make(num_experts=8)
            model.model.compute_dtype = torch.bfloat16
            ids = torch.randint(0, 50, (8, 64), generator=generator(1))
            model(ids).square().sum().backward()
            found.append([p.grad for p in model.model.layers[1].mlp.parameters()])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_compiles_without_graph_breaks(dtype):
    model = make(moe_intermediate_size=32)
    layer = model.model.layers[1].mlp
    x = torch.randn(2, 24, 32, generator=generator(1)).to(dtype)
    results = []
    for function in (layer, compiling.compiled(layer, fullgraph=True, dynamic=False, backend="aot_eager")):
        layer.zero_grad()
        out, routing = function(x)
        (out.float().square().sum() + routing.logits.square().sum()).backward()
        results.append([out.detach(), routing.experts, *(p.grad.clone() for p in layer.parameters())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_parameters_and_operations_are_counted():
    config = ModelConfig(**SHAPE)
    model = CausalLM(config)
    expert, attention = 3 * 32 * 16, 32 * (2 * 32 + 2 * 16)
    sparse, dense, norms = 5 * 32 + 7 * expert, 3 * 32 * 72, 7 * 32
    total = 50 * 32 + 3 * attention + dense + 2 * sparse + norms
    assert model.all_parameters() == total == sum(p.numel() for p in model.parameters())
    assert model.active_parameters() == total - 2 * 3 * expert
    products = 3 * attention + dense + 2 * (sparse - 3 * expert) + 50 * 32
    assert model.flops_per_token(10.0) == 6 * products + 12 * 3 * 32 * 10
    alike = {k: v for k, v in SHAPE.items() if "exp" not in k and "moe" not in k and "first" not in k}
    alike = CausalLM(ModelConfig(**alike))
    assert alike.active_parameters() == alike.all_parameters()


def test_initial_outputs_into_the_residual_stream_are_scaled():
    layer = make(hidden_size=64, moe_intermediate_size=128).model.layers[1].mlp
    assert layer.experts.gate_up_proj.std().item() == pytest.approx(0.2, rel=0.05)
    assert layer.experts.down_proj.std().item() == pytest.approx(0.2 / 6**0.5, rel=0.05)
    assert layer.gate.weight.std().item() == pytest.approx(0.2, rel=0.2)
    assert not layer.gate.moe_statics.e_score_correction_bias.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_experts_per_tok=6), "num_experts_per_tok=6 must be between 1 and num_experts=5"),
        (dict(num_experts_per_tok=0), "num_experts_per_tok=0 must be between"),
        (dict(moe_intermediate_size=0), "needs moe_intermediate_size"),
        (dict(first_k_dense_replace=3), "first_k_dense_replace=3 leaves no layer"),
        (dict(qk_norm=True), "qk_norm=true with experts"),
        (dict(attention_bias=True), "attention_bias=true with experts"),
        (dict(mlp_bias=True), "mlp_bias=true with experts"),
        (dict(num_experts=0), "num_experts_per_tok=2 needs experts"),
        (dict(num_experts=-1), "greater than or equal to 0"),
    ],
)
def test_shapes_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**(SHAPE | changes))


def test_a_dense_model_may_not_ask_for_unnormalised_routing():
    dense = {k: v for k, v in SHAPE.items() if "exp" not in k and "moe" not in k and "first" not in k}
    with pytest.raises(ValueError, match="norm_topk_prob=False needs experts"):
        ModelConfig(**dense, norm_topk_prob=False)
