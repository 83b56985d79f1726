"""Our experts and transformers' Ernie-4.5-MoE and Qwen2-MoE agree on the same directory, in both directions."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Ernie4_5_MoeConfig, Qwen2MoeConfig

from mengya.errors import UserError
from mengya.model.load import load_model
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM

from .conftest import check_greedy_decoding

SHAPE = dict(
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=80,
    vocab_size=97,
    max_position_embeddings=64,
    num_experts=7,
    num_experts_per_tok=3,
    moe_intermediate_size=16,
    n_shared_experts=2,
    first_k_dense_replace=1,
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
VARIANTS = {
    "ernie": {},
    "ernie-untied": dict(tie_word_embeddings=False, rope_theta=500_000.0),
    "ernie-all-sparse": dict(first_k_dense_replace=0),
    "ernie-no-shared": dict(n_shared_experts=0),
    "ernie-odd-width": dict(moe_intermediate_size=13),
    "ernie-one": dict(num_experts_per_tok=1),
    "ernie-wide-heads": dict(head_dim=20, num_key_value_heads=1),
    "ernie-yarn": dict(rope_scaling=YARN),
    "qwen": dict(norm_topk_prob=False),
    "qwen-untied": dict(norm_topk_prob=False, tie_word_embeddings=False),
    "qwen-all-sparse": dict(norm_topk_prob=False, first_k_dense_replace=0),
    "qwen-no-shared": dict(norm_topk_prob=False, n_shared_experts=0),
    "qwen-all-taken": dict(norm_topk_prob=False, num_experts_per_tok=7, head_dim=16),
    "qwen-yarn": dict(norm_topk_prob=False, rope_scaling=YARN),
}


def make(name: str) -> CausalLM:
    model = CausalLM(ModelConfig(**(SHAPE | VARIANTS[name])))
    model.initialize(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):  # large enough to change the selection
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    return model.eval()


def tokens(rows: int = 2, length: int = 40) -> torch.Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(2))


def load_peer(path) -> torch.nn.Module:
    peer, report = AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True, dtype=torch.float32, experts_implementation="eager"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return peer.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_what_we_save_transformers_loads_with_the_same_logits(name, tmp_path):
    model = make(name)
    model.save(tmp_path, eos_token_id=2, pad_token_id=0)
    peer = load_peer(tmp_path)
    assert peer.config.model_type == ("ernie4_5_moe" if model.config.norm_topk_prob else "qwen2_moe")
    with torch.no_grad():
        expected = peer(tokens()).logits
        assert (model(tokens()) - expected).abs().max() < 1e-4
    back = load_model(tmp_path)
    assert back.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_what_transformers_saves_we_load_with_the_same_logits(name, tmp_path):
    ours = make(name)
    ours.save(tmp_path / "ours")
    peer = load_peer(tmp_path / "ours")
    peer.save_pretrained(tmp_path / "theirs")  # with their own names, fields and shards
    model = load_model(tmp_path / "theirs")
    assert model.config == ours.config or model.config.rope_scaling
    with torch.no_grad():
        assert (model(tokens()) - peer(tokens()).logits).abs().max() < 1e-4


def test_a_model_that_transformers_made_loads(tmp_path):
    sizes = {k: SHAPE[k] for k in list(SHAPE)[:7]}
    config = Ernie4_5_MoeConfig(
        **sizes, moe_num_experts=6, moe_k=2, moe_intermediate_size=24, moe_num_shared_experts=1, moe_layer_start_index=2
    )
    torch.manual_seed(0)
    peer = AutoModelForCausalLM.from_config(config).float().eval()
    peer.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.config.rope_theta == 500_000.0 and model.config.first_k_dense_replace == 2
    with torch.no_grad():
        assert (model(tokens()) - peer(tokens()).logits).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["ernie", "ernie-odd-width", "qwen", "qwen-no-shared"])
def test_gradients_are_those_of_transformers(name, tmp_path):
    model = make(name)
    model.save(tmp_path / "model")
    peer = load_peer(tmp_path / "model")
    weight = torch.randn(2, 40, 97, generator=torch.Generator().manual_seed(3))
    (peer(tokens()).logits * weight).sum().backward()
    (model(tokens()) * weight).sum().backward()
    with torch.no_grad():  # their gradients take the place of their weights, to come back under our names
        for key, parameter in peer.named_parameters():
            if not key.endswith(("shared_expert_gate.weight", "_proj.bias", "e_score_correction_bias")):
                parameter.copy_(parameter.grad)
    peer.save_pretrained(tmp_path / "gradients")
    theirs = dict(load_model(tmp_path / "gradients").named_parameters())
    for key, parameter in model.named_parameters():
        expected = theirs[key]
        if not model.config.norm_topk_prob and key.endswith("shared_experts.down_proj.weight"):
            expected = 4 * expected  # the gradient of the doubled weight is half of ours, and loading halves it again
        scale = expected.abs().max()
        assert (parameter.grad - expected).abs().max() <= 2e-4 * scale, key


@pytest.mark.parametrize("name", ["ernie", "qwen"])
def test_packed_documents_do_not_see_each_other(name, tmp_path):
    model = make(name)
    model.save(tmp_path)
    peer = load_peer(tmp_path)
    ids = tokens(1, 40)
    starts = torch.where(torch.arange(40) < 17, 0, 17).int()[None]
    with torch.no_grad():
        hidden, _ = model.hidden(input_ids=ids, position_ids=torch.arange(40)[None] - starts, starts=starts)
        packed = model.logits(hidden)
        for part in (slice(0, 17), slice(17, 40)):
            assert (packed[:, part] - peer(ids[:, part]).logits).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["ernie", "qwen"])
def test_greedy_decoding_equals_transformers_generate(name, tmp_path):
    model = make(name)
    model.save(tmp_path)
    check_greedy_decoding(model, load_peer(tmp_path), tokens(1, 7))


def test_transformers_counts_the_same_parameters(tmp_path):
    for name, extra in (("ernie", 2 * 7), ("qwen", 3 * (48 + 24 + 24) + 2 * 48)):
        make(name).save(tmp_path / name)
        peer = load_peer(tmp_path / name)
        # the selection bias; or the zero biases and gates
        assert make(name).all_parameters() + extra == sum(p.numel() for p in peer.parameters())


def test_half_precision_keeps_the_routers_whole(tmp_path):
    model = make("ernie")
    model.save(tmp_path, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for n, t in stored.items() if ".gate.weight" in n or "statics" in n} == {torch.float32}
    assert stored["model.layers.1.mlp.experts.0.up_proj.weight"].dtype == torch.bfloat16
    half = load_model(tmp_path, dtype=torch.bfloat16)
    gate = half.model.layers[1].mlp.gate
    assert torch.equal(gate.weight, model.model.layers[1].mlp.gate.weight)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert peer.dtype == torch.bfloat16
    with torch.no_grad():
        assert (half(tokens()) - peer(tokens()).logits).abs().max() < 0.5


def change(path, edit) -> None:
    file = path / "model.safetensors"
    state = load_file(file)
    edit(state)
    save_file(state, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("key", "reason"),
    [("model.layers.1.mlp.shared_expert_gate.weight", "gated"), ("model.layers.0.self_attn.q_proj.bias", "bias")],
)
def test_what_we_cannot_compute_is_refused(key, reason, tmp_path):
    make("qwen").save(tmp_path)
    change(tmp_path, lambda state: state.update({key: torch.full_like(state[key], 0.1)}))
    with pytest.raises(UserError, match=reason) as error:
        load_model(tmp_path, implementation="native")
    assert key in str(error.value) and str(tmp_path) in str(error.value)


def test_a_missing_expert_is_named(tmp_path):
    make("ernie").save(tmp_path)
    change(tmp_path, lambda state: state.pop("model.layers.1.mlp.experts.3.up_proj.weight"))
    with pytest.raises(UserError, match="lack some of the 7 experts"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "field", "value", "reason"),
    [
        ("qwen", "mlp_only_layers", [1], "first layers"),
        ("qwen", "decoder_sparse_step", 2, "first layers"),
        ("qwen", "shared_expert_intermediate_size", 40, "multiple of moe_intermediate_size"),
        ("ernie", "moe_layer_interval", 2, "first layers"),
        ("ernie", "moe_layer_end_index", 1, "first layers"),
        ("ernie", "use_bias", True, "use_bias"),
        ("ernie", "moe_k", 9, "num_experts_per_tok=9"),
    ],
)
def test_settings_that_we_do_not_have_are_refused(name, field, value, reason, tmp_path):
    make(name).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}), encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        load_model(tmp_path, implementation="native")


def test_a_normalised_qwen2_moe_directory_loads(tmp_path):
    """Other people's, that is: we write normalised routing as Ernie."""
    sizes = {k: SHAPE[k] for k in list(SHAPE)[:7]}
    config = Qwen2MoeConfig(
        **sizes,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
        norm_topk_prob=True,
    )
    torch.manual_seed(0)
    peer = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for key, parameter in peer.named_parameters():
            if key.endswith(("shared_expert_gate.weight", "bias")):
                parameter.zero_()
    peer.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    model.save(tmp_path / "ours")
    with torch.no_grad():
        expected = peer(tokens()).logits
        assert (model(tokens()) - expected).abs().max() < 1e-4
        assert (load_peer(tmp_path / "ours")(tokens()).logits - expected).abs().max() < 1e-4
