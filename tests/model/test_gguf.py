"""GGUF files: every family there and back, the types of tensors, and what is refused."""

import pytest
import torch

from mengya.errors import UserError
from mengya.model import gguf
from mengya.model.native.config import ModelConfig, RopeScaling
from mengya.model.native.transformer import CausalLM

pytest.importorskip("gguf")

EXPERTS = dict(
    num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=2, first_k_dense_replace=1
)
FAMILIES = {
    "llama": dict(),
    "llama-untied-biases": dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True, head_dim=12),
    "qwen3": dict(qk_norm=True, head_dim=16),
    "qwen2": dict(qkv_bias=True),
    "qwen2-wide": dict(qkv_bias=True, head_dim=16),
    "mistral": dict(sliding_window=64),
    "ernie4_5_moe": EXPERTS,
    "ernie4_5_moe-no-shared": EXPERTS | dict(n_shared_experts=0, first_k_dense_replace=0),
    "qwen2_moe": EXPERTS | dict(norm_topk_prob=False),
    "qwen2_moe-no-shared": EXPERTS | dict(norm_topk_prob=False, n_shared_experts=0),
    "llama3": dict(
        rope_scaling=RopeScaling(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
        rope_theta=500_000.0,
    ),
    "yarn": dict(
        rope_scaling=RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
        rope_theta=500_000.0,
        qk_norm=True,
    ),
    "yarn-with-factor": dict(
        rope_scaling=RopeScaling(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.3
        )
    ),
    "linear": dict(rope_scaling=RopeScaling(rope_type="linear", factor=4.0)),
}
"""By name: changes of the shape of `tiny_model`."""
ARCHITECTURES = dict(
    zip(
        FAMILIES,
        "llama llama qwen3 qwen2 llama llama ernie4_5-moe ernie4_5-moe deepseek deepseek".split()
        + "llama qwen3 llama llama".split(),
        strict=True,
    )
)


def shaken(model: CausalLM) -> CausalLM:
    """Weights that a fresh model has at 0 or 1 are some, too, large enough to change what experts are chosen."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.weights().items():
            if name.endswith((".bias", "norm.weight")):
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
            elif name.endswith("e_score_correction_bias"):
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_comes_back(tiny_model, tmp_path, family):
    model = shaken(tiny_model(**FAMILIES[family]))
    kind = gguf.architecture(model.config, "it")
    assert kind == ARCHITECTURES[family]
    rows = model.vocab_size
    values = {"general.architecture": kind} | gguf.hyperparameters(model.config, kind, model.context, rows)
    tensors = gguf.to_gguf(model.weights(), model.config, kind, rows)
    types = gguf.write(tmp_path / "it.gguf", values, tensors, "f32")
    found = gguf.read(tmp_path / "it.gguf")
    assert types == found.types and set(types.values()) == {"f32"}
    for key, value in values.items():
        assert found.values[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    state = gguf.from_gguf(found.tensors, model.config, kind)
    assert state.keys() == model.weights().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.weights().items())


def test_pairs_are_rotated_as_halves_were(tiny_model):
    """Row 2 i + h of a head there is row i + h head_dim / 2 of ours; those of v stay."""
    model = tiny_model()
    ours, theirs = model.weights(), gguf.to_gguf(model.weights(), model.config, "llama", model.vocab_size)
    q, half = ours["model.layers.0.self_attn.q_proj.weight"], model.config.head_dim // 2
    for head in range(model.config.num_attention_heads):
        for pair in range(half):
            for h in range(2):
                row = theirs["blk.0.attn_q.weight"][head * 2 * half + 2 * pair + h]
                assert torch.equal(row, q[head * 2 * half + pair + h * half])
    assert torch.equal(theirs["blk.0.attn_v.weight"], ours["model.layers.0.self_attn.v_proj.weight"])


def test_rows_without_a_token_are_left_out(tiny_model):
    model = tiny_model(tie_word_embeddings=False, vocab_size=320)
    tensors = gguf.to_gguf(model.weights(), model.config, "llama", 300)
    assert tensors["token_embd.weight"].shape == tensors["output.weight"].shape == (300, 32)


def test_every_source_tensor_has_a_place(tiny_model):
    model = tiny_model()
    with pytest.raises(UserError, match=r"model.layers.0.mlp.extra have no place in a GGUF file"):
        gguf.to_gguf(model.weights() | {"model.layers.0.mlp.extra": torch.ones(2)}, model.config, "llama", 300)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(qk_norm=True, attention_bias=True), "qk_norm with attention_bias"),
        (EXPERTS | dict(norm_topk_prob=False, head_dim=16), "norm_topk_prob=false with head_dim=16"),
        (dict(rope_scaling=RopeScaling(rope_type="dynamic", factor=2.0)), "rope_type=dynamic"),
        (FAMILIES["llama3"] | dict(qk_norm=True), "rope_type=llama3 in the architecture qwen3"),
        (dict(rope_scaling=RopeScaling(rope_type="yarn", factor=2.0, beta_fast=16.0)), "other beta_fast"),
        (dict(rope_scaling=RopeScaling(rope_type="yarn", factor=2.0, truncate=False)), "truncate=false"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tiny_model, changes, words):
    with pytest.raises(UserError, match=f"llama.cpp does not compute .*{words}.*serve the Hugging Face directory"):
        gguf.architecture(tiny_model(**changes).config, "it")


@pytest.mark.parametrize("wanted", ["f16", "bf16", "q8_0", "q5_0", "q4_0"])
def test_types_of_tensors(tiny_model, tmp_path, wanted):
    model = tiny_model(**EXPERTS)  # rows of 32 and 64, and of 48 in the dense layer
    tensors = gguf.to_gguf(model.weights(), model.config, "ernie4_5-moe", model.vocab_size)
    types = gguf.write(tmp_path / "it.gguf", {"general.architecture": "ernie4_5-moe"}, tensors, wanted)
    found = gguf.read(tmp_path / "it.gguf")
    assert found.types == types
    assert types["output_norm.weight"] == types["blk.1.ffn_gate_inp.weight"] == types["blk.1.exp_probs_b.bias"] == "f32"
    assert types["blk.1.ffn_down_exps.weight"] == types["blk.0.attn_q.weight"] == wanted
    assert types["blk.0.ffn_down.weight"] == ("f16" if wanted.startswith("q") else wanted)
    assert types["token_embd.weight"] == ("q8_0" if wanted in ("q5_0", "q4_0") else wanted)
    part = {"f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 0.6 / 127, "q5_0": 1.1 / 16, "q4_0": 1.1 / 8}[wanted]
    for name, tensor in tensors.items():
        assert ((found.tensors[name] - tensor).abs() <= part * tensor.abs().amax(-1, keepdim=True) + 1e-7).all(), name


def test_numbers_that_are_too_large(tiny_model, tmp_path):
    for value, wanted in ((1e5, "f16"), (float("nan"), "f32")):
        tensors = {"token_embd.weight": torch.full((2, 32), value)}
        with pytest.raises(UserError, match=f"token_embd.weight has numbers that {wanted} cannot hold"):
            gguf.write(tmp_path / "it.gguf", {"general.architecture": "llama"}, tensors, wanted)


def test_a_file_that_is_cut_off(tiny_model, tmp_path):
    model = tiny_model()
    tensors = gguf.to_gguf(model.weights(), model.config, "llama", model.vocab_size)
    path = tmp_path / "it.gguf"
    gguf.write(path, {"general.architecture": "llama"}, tensors, "f32")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"it\.gguf is no readable GGUF file"):
        gguf.read(path)


def test_models_of_others(tiny_model):
    with pytest.raises(UserError, match=r"GGUF files are written of llama, .*convert_hf_to_gguf.py"):
        gguf.native(_Other(), "gpt2")


class _Other:
    title = "GPT2LMHeadModel, transformers"


def test_the_context_of_a_sliding_window(tiny_model):
    model = tiny_model(sliding_window=64)
    values = gguf.hyperparameters(model.config, "llama", model.context, 300)
    assert values["llama.context_length"] == 64 and values["llama.rope.scaling.type"] == "none"


def test_theta_is_read_from_both_places():
    from mengya.model.native.config import from_hf, to_hf

    shape = ModelConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        max_position_embeddings=64, vocab_size=300, rope_theta=5e5,
    )  # fmt: skip
    hf = to_hf(shape)
    for place in ("rope_theta", "rope_parameters"):
        found = from_hf({key: value for key, value in hf.items() if key != place}, "it")
        assert gguf.hyperparameters(found, "llama", 64, 300)["llama.rope.freq_base"] == 5e5
