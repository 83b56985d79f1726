"""Our dense model and transformers' Llama, Mistral, Qwen2 and Qwen3 agree on the same directory, in both directions."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from mengya.model.load import load_model
from mengya.model.native.config import ModelConfig, RopeScaling, model_type
from mengya.model.native.transformer import CausalLM

from .conftest import check_greedy_decoding, in_pieces

SHAPE = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=80)
SCALINGS = {
    "none": None,
    "linear": dict(rope_type="linear", factor=2.0),
    "dynamic": dict(rope_type="dynamic", factor=2.0),
    "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    "llama3": dict(
        rope_type="llama3", factor=8.0, original_max_position_embeddings=32, low_freq_factor=1.0, high_freq_factor=4.0
    ),
}
VARIANTS = {
    "llama": {},
    "llama-untied": dict(tie_word_embeddings=False),
    "llama-bias": dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "llama-mha": dict(num_key_value_heads=4),
    "llama-mqa": dict(num_key_value_heads=1),
    "llama-wide-heads": dict(head_dim=20),
    "qwen3": dict(qk_norm=True, head_dim=16),
    "qwen3-bias": dict(qk_norm=True, attention_bias=True, tie_word_embeddings=False),
    "qwen2": dict(qkv_bias=True),
    "qwen2-untied": dict(qkv_bias=True, tie_word_embeddings=False),
    "mistral-window": dict(sliding_window=64, tie_word_embeddings=False, head_dim=16),
} | {f"llama-{name}": dict(rope_scaling=scaling) for name, scaling in SCALINGS.items() if scaling}
VARIANTS["qwen3-yarn"] = dict(qk_norm=True, rope_scaling=SCALINGS["yarn"])


def make(variant: dict) -> CausalLM:
    config = ModelConfig(**(SHAPE | dict(vocab_size=97, max_position_embeddings=64) | variant))
    model = CausalLM(config)
    model.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():  # norms and biases that are not trivial
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    return model.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_what_we_save_transformers_loads_with_the_same_logits(name, tmp_path):
    model = make(VARIANTS[name])
    model.save(tmp_path, eos_token_id=2, pad_token_id=0)
    peer, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    length = 90 if "dynamic" in name else 64  # dynamic NTK only acts beyond the trained context
    ids = torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        difference = (model(ids) - peer.eval()(ids).logits).abs().max()
    assert difference < 1e-4
    assert model.all_parameters() == sum(p.numel() for p in peer.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_what_transformers_saves_we_load_with_the_same_logits(name, tmp_path):
    ours = ModelConfig(**(SHAPE | dict(vocab_size=97, max_position_embeddings=64) | VARIANTS[name]))
    shared = {k: getattr(ours, k) for k in SHAPE} | {
        k: getattr(ours, k)
        for k in ("vocab_size", "head_dim", "tie_word_embeddings", "attention_bias", "max_position_embeddings")
    }
    rope = dict(VARIANTS[name].get("rope_scaling") or {"rope_type": "default"}) | {"rope_theta": 10_000.0}
    cls, extra = {
        "llama": (LlamaConfig, {"mlp_bias": ours.mlp_bias}),
        "mistral": (MistralConfig, {"sliding_window": ours.sliding_window}),
        "qwen2": (Qwen2Config, {}),
        "qwen3": (Qwen3Config, {}),
    }[model_type(ours)]
    torch.manual_seed(3)
    peer = AutoModelForCausalLM.from_config(cls(**shared, **extra, rope_parameters=rope)).float().eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    peer.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    ids = torch.randint(0, 97, (2, 50), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert (model(ids) - peer(ids).logits).abs().max() < 1e-4
    assert model.config == ours or model.config.rope_scaling  # scaling may come back with its defaults filled in


def test_a_family_stays_what_it_was(tmp_path):
    """Without a window Mistral computes what Llama does, and is still written as Mistral."""
    config = MistralConfig(**SHAPE, vocab_size=97, max_position_embeddings=64, sliding_window=None)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "theirs")
    load_model(tmp_path / "theirs").save(tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["architectures"] == ["MistralForCausalLM"] and written["sliding_window"] is None
    ids = torch.randint(0, 97, (1, 60))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert (load_model(tmp_path / "ours")(ids) - theirs(ids).logits).abs().max() < 1e-4


def test_the_context_ends_with_the_sliding_window(tmp_path):
    model = make(dict(sliding_window=32))
    assert model.context == 32
    model.save(tmp_path)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        close = (model(ids) - peer(ids).logits).abs().amax(-1) < 1e-4
    assert close[:, :32].all() and not close[:, 33:].any()


@pytest.mark.parametrize(
    "variant",
    [
        dict(qkv_bias=True, attention_bias=True),
        dict(sliding_window=8, qk_norm=True),
        dict(qkv_bias=True, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8),
    ],
)
def test_what_no_published_family_has_is_refused(variant):
    with pytest.raises(ValueError, match="remove"):
        ModelConfig(**SHAPE, max_position_embeddings=64, **variant)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "llama-bias", "llama-yarn"])
def test_greedy_decoding_equals_transformers_generate(name, tmp_path):
    model = make(VARIANTS[name])
    model.save(tmp_path)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompt = torch.randint(0, 97, (1, 7), generator=torch.Generator().manual_seed(4))
    check_greedy_decoding(model, peer, prompt)


def test_cached_decoding_of_unequal_rows_equals_the_full_forward():
    model = make({})
    ids = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(5))
    found = in_pieces(model.steps(64), [ids[0, :11].tolist(), ids[1, :7].tolist()], [(9, 5), (2, 2)])
    with torch.no_grad():
        for row, logits in enumerate(found):
            torch.testing.assert_close(logits, model(ids[row : row + 1, : len(logits)])[0], atol=1e-5, rtol=1e-4)


def test_rope_scaling_rejects_what_it_cannot_be():
    with pytest.raises(ValueError, match="factor"):
        RopeScaling(rope_type="linear", factor=0.5)
    with pytest.raises(ValueError, match="low_freq_factor"):
        RopeScaling(rope_type="llama3", factor=8.0)
