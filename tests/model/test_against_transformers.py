"""Our dense model and transformers' Llama and Qwen3 agree on the same directory, in both directions."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from mengya.model.load import load_model
from mengya.model.native.config import ModelConfig, RopeScaling
from mengya.model.native.transformer import CausalLM

from .conftest import check_greedy_decoding

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
    cls = Qwen3Config if ours.qk_norm else LlamaConfig
    extra = {} if ours.qk_norm else {"mlp_bias": ours.mlp_bias}
    torch.manual_seed(3)
    peer = AutoModelForCausalLM.from_config(cls(**shared, **extra, rope_parameters=rope)).float().eval()
    peer.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    ids = torch.randint(0, 97, (2, 50), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert (model(ids) - peer(ids).logits).abs().max() < 1e-4
    assert model.config == ours or model.config.rope_scaling  # scaling may come back with its defaults filled in


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama-bias", "llama-yarn"])
def test_greedy_decoding_equals_transformers_generate(name, tmp_path):
    model = make(VARIANTS[name])
    model.save(tmp_path)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompt = torch.randint(0, 97, (1, 7), generator=torch.Generator().manual_seed(4))
    check_greedy_decoding(model, peer, prompt)


def test_cached_decoding_of_unequal_rows_equals_the_full_forward():
    model = make({})
    ids = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(5))
    lengths = torch.tensor([9, 5])
    cache = model.new_cache(2, 16)
    with torch.no_grad():
        prefill = model.logits(model.decode(input_ids=ids[:, :9], cache=cache))
        cache.set_lengths(lengths)
        step = model.logits(model.decode(input_ids=torch.stack([ids[0, 9:11], ids[1, 5:7]]), cache=cache))
        for row, length in enumerate(lengths.tolist()):
            full = model(ids[row : row + 1, : length + 2])[0]
            torch.testing.assert_close(prefill[row, :length], full[:length], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(step[row], full[length:], atol=1e-5, rtol=1e-4)


def test_rope_scaling_rejects_what_it_cannot_be():
    with pytest.raises(ValueError, match="factor"):
        RopeScaling(rope_type="linear", factor=0.5)
    with pytest.raises(ValueError, match="low_freq_factor"):
        RopeScaling(rope_type="llama3", factor=8.0)
