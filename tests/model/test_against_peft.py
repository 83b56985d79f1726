"""Our models under the peft library: every adapter works as on the same model of transformers, or is refused."""

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mengya.errors import UserError
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM

IDS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(7))
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def pair(tmp_path, **changes):
    """A native model and transformers' of the same weights."""
    shape = dict(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    ours = CausalLM(ModelConfig(**(shape | changes)))
    ours.initialize(torch.Generator().manual_seed(0))
    ours.save(tmp_path)
    return ours, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)


def train(model, config, steps=3):
    """Losses, and the adapter that they leave; the adapter begins away from nothing."""
    torch.manual_seed(0)
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    trained = {n: p for n, p in sorted(model.named_parameters()) if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    optimizer, losses = torch.optim.SGD(trained.values(), lr=0.5), []
    for _ in range(steps):
        found = model(IDS)
        logits = getattr(found, "logits", found)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(float(p.grad.abs().max()) > 0 for p in trained.values()), "an adapter that nothing reaches"
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, losses, {name: p.detach() for name, p in trained.items()}


@pytest.mark.parametrize(
    "config",
    [
        *(pytest.param(lambda n=name: LoraConfig(r=4, target_modules=[n]), id=name) for name in ALL),
        pytest.param(lambda: LoraConfig(r=4, target_modules=["embed_tokens"]), id="embed_tokens"),
        pytest.param(lambda: LoraConfig(r=4, target_modules=ALL, use_dora=True), id="dora"),
        pytest.param(lambda: LoraConfig(r=4, target_modules=ALL, modules_to_save=["norm"]), id="modules_to_save"),
        pytest.param(lambda: IA3Config(target_modules=ALL, feedforward_modules=["down_proj"]), id="ia3"),
    ],
)
def test_adapters_train_as_on_transformers(tmp_path, config):
    ours, theirs = pair(tmp_path, tie_word_embeddings=False)
    (ours, losses, adapter), (theirs, wanted, expected) = train(ours, config()), train(theirs, config())
    assert losses == pytest.approx(wanted, rel=1e-5) and losses[-1] < losses[0]
    assert adapter.keys() == expected.keys()
    for name, value in adapter.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        before = ours(IDS)
        torch.testing.assert_close(ours.merge_and_unload()(IDS), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_adapters_of_experts(tmp_path, name):
    ours, theirs = pair(tmp_path, **EXPERTS)
    config = LoraConfig(r=4, target_modules=[], target_parameters=[f"mlp.experts.{name}"])
    (_, losses, _), (_, wanted, _) = train(ours, config), train(theirs, config)
    assert losses == pytest.approx(wanted, rel=1e-5) and losses[-1] < losses[0]


@pytest.mark.parametrize("named", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_that_would_be_passed_over_is_refused(tmp_path, named):
    ours, _ = pair(tmp_path, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"lm_head is wrapped in .* leave lm_head out of what the adapter changes"):
        train(ours, LoraConfig(**({"r": 4, "target_modules": ["q_proj"]} | named)))
