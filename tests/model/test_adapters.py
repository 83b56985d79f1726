"""Adapters: the same numbers as peft's on the library's models, its files, and merging."""

import json
import shutil

import bitsandbytes
import pytest
import torch
from peft import KasaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from mengya.errors import UserError
from mengya.model.adapters import Lora, attach
from mengya.model.load import describe, load_merged, load_model

from .test_foreign import LLAMA, SHAPES

FAMILIES = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA | dict(head_dim=8),
    "mistral": LLAMA | dict(sliding_window=None),
    "gpt2": SHAPES["gpt2"],
    "phi": SHAPES["phi"],
    "qwen2_moe": SHAPES["qwen2_moe"],
    "ernie4_5_moe": LLAMA
    | dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=16, moe_num_shared_experts=1, moe_layer_start_index=1),
}
METHODS = {"lora": {}, "dora": dict(dora=True), "rslora": dict(rslora=True, alpha=3)}
IDS = torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(7))


def write_base(folder, family="llama", seed=0, **changes):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(FAMILIES[family] | changes))
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    return folder


def check_possible(family, method):
    if method == "dora" and "moe" in family:
        pytest.skip("peft has no DoRA for experts; refused, see below")


def with_adapter(base, out, steps=0, **settings):
    """A model with a new adapter, trained a little, and its directory."""
    torch.manual_seed(5)
    model = load_model(base, lora=Lora(r=4, **settings))
    losses = train(model, lambda: model.loss(model.hidden(input_ids=IDS[:, :-1])[0], IDS[:, 1:]) / 30, steps)
    model.eval().save(out)
    return model, losses


def train(model, loss, steps):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        found = loss()
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        losses.append(float(found.detach()))
    return losses


def logits_of(model):
    with torch.no_grad():
        found = model.eval()(IDS)
    return getattr(found, "logits", found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_steps_are_those_of_peft(family, method, tmp_path):
    check_possible(family, method)
    base = write_base(tmp_path / "base", family)
    with_adapter(base, tmp_path / "begun", **METHODS[method])
    peer = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "begun", is_trainable=True
    )
    _, losses = with_adapter(base, tmp_path / "done", steps=20, **METHODS[method])

    def loss():
        logits = peer(input_ids=IDS[:, :-1], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())

    assert losses[-1] < losses[0] - 0.1
    assert losses == pytest.approx(train(peer, loss, 20), abs=1e-4)
    reloaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "done"
    )
    torch.testing.assert_close(logits_of(load_model(tmp_path / "done")), logits_of(reloaded), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_logits_equal_unmerged(family, method, tmp_path):
    check_possible(family, method)
    base = write_base(tmp_path / "base", family)
    model, _ = with_adapter(base, tmp_path / "adapter", steps=5, **METHODS[method])
    wanted = logits_of(model)
    assert (wanted - logits_of(load_model(base))).abs().max() > 0.05
    load_merged([tmp_path / "adapter"]).save(tmp_path / "merged")
    torch.testing.assert_close(logits_of(load_model(tmp_path / "merged")), wanted, atol=1e-5, rtol=1e-4)
    theirs, told = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    torch.testing.assert_close(logits_of(theirs.float()), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "qwen2_moe"])
def test_qlora_trains_as_peft_does_and_merges_into_whole_weights(family, tmp_path):
    """Measured between the steps, too: a pass without gradients must not change what is trained."""
    wide = dict(n_embd=64) if family == "gpt2" else dict(hidden_size=64, intermediate_size=96)
    base = write_base(tmp_path / "base", family, **wide)
    with_adapter(base, tmp_path / "begun", quantize="nf4")
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    inner = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=how)
    for module in inner.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    peer = PeftModel.from_pretrained(inner, tmp_path / "begun", is_trainable=True)
    torch.manual_seed(5)
    model = load_model(base, lora=Lora(r=4, quantize="nf4"))
    assert any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in model.modules())

    def ours():
        with torch.no_grad():
            model.eval()(IDS)
        return model.loss(model.hidden(input_ids=IDS[:, :-1])[0], IDS[:, 1:]) / 30

    def theirs():
        logits = peer.eval()(input_ids=IDS[:, :-1], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())

    losses = train(model, ours, 20)
    assert losses == pytest.approx(train(peer, theirs, 20), abs=1e-4)
    assert losses[-1] < losses[0] - 0.1
    model.save(tmp_path / "done")
    again = load_model(tmp_path / "done", as_trained=True)
    torch.testing.assert_close(logits_of(again), logits_of(model), atol=1e-5, rtol=1e-5)
    load_merged([tmp_path / "done"]).save(tmp_path / "merged")
    whole = load_model(tmp_path / "done")
    torch.testing.assert_close(logits_of(load_model(tmp_path / "merged")), logits_of(whole), atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        merged = load_model(tmp_path / "merged")
        found = float(merged.loss(merged.hidden(input_ids=IDS[:, :-1])[0], IDS[:, 1:])) / 30
    assert abs(found - losses[-1]) < 0.3


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_layers_that_are_saved_whole_stay_tied(family, tied, tmp_path):
    """Tied weights that drift apart while config.json still says tied would be lost with the next reading."""
    base = write_base(tmp_path / "base", family, tie_word_embeddings=tied)
    names = ["embed_tokens", "lm_head"] if family == "qwen3" else ["wte", "lm_head"]
    model, _ = with_adapter(base, tmp_path / "adapter", steps=5, modules_to_save=names)
    wanted = logits_of(model)
    torch.testing.assert_close(logits_of(load_model(tmp_path / "adapter")), wanted)
    peer = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter"
    )
    torch.testing.assert_close(logits_of(peer), wanted, atol=1e-4, rtol=1e-4)
    load_merged([tmp_path / "adapter"]).save(tmp_path / "merged")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert theirs.config.tie_word_embeddings == tied
    torch.testing.assert_close(logits_of(theirs), wanted, atol=1e-4, rtol=1e-4)


def test_every_part_of_an_adapter_learns_under_activation_checkpointing(tmp_path):
    for family in ("llama", "gpt2"):
        base = write_base(tmp_path / family, family)
        found = []
        for recompute in (False, True):
            torch.manual_seed(5)
            model = load_model(base, lora=Lora(r=4)).train()
            if family == "gpt2":
                model.eval()  # without its dropout
            if recompute:
                model.recompute_blocks()
            train(model, lambda m=model: m.loss(m.hidden(input_ids=IDS[:, :-1])[0], IDS[:, 1:]) / 30, 2)
            found.append({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})
        assert all(float(p.abs().max()) > 0 for p in found[1].values())
        for name, parameter in found[0].items():
            torch.testing.assert_close(parameter, found[1][name])


def test_the_targets_are_all_linear_layers_but_routers(tmp_path):
    for family, wanted in {
        "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        "gpt2": {"c_attn", "c_proj", "c_fc"},
        "qwen2_moe": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    }.items():
        base = write_base(tmp_path / family, family)
        with_adapter(base, tmp_path / f"{family}-adapter")
        assert (
            set(json.loads((tmp_path / f"{family}-adapter/adapter_config.json").read_text())["target_modules"])
            == wanted
        )


@pytest.mark.parametrize("family", ["qwen2_moe", "ernie4_5_moe"])
def test_experts_get_an_adapter_each(family, tmp_path):
    base = write_base(tmp_path / "base", family)
    with_adapter(base, tmp_path / "adapter", steps=3)
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    experts = {name: tensor for name, tensor in state.items() if ".mlp.experts." in name}
    layers = 1 if family == "ernie4_5_moe" else 2
    assert len(experts) == 4 * layers and all(float(tensor.abs().max()) > 0 for tensor in experts.values())
    assert not any(".gate.lora" in name for name in state)
    with pytest.raises(UserError, match="no DoRA for experts; name other layers"):
        with_adapter(base, tmp_path / "dora", dora=True)
    with_adapter(base, tmp_path / "attention", dora=True, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def adapter(tmp_path):
    base = write_base(tmp_path / "base")
    with_adapter(base, tmp_path / "adapter", steps=2)
    return tmp_path / "adapter"


def test_an_adapter_of_another_model_is_refused(adapter):
    write_base(adapter.parent / "base", seed=1)  # of the same shape
    with pytest.raises(UserError, match="an adapter of another model than the one that is now in"):
        load_model(adapter)


def test_adapter_and_model_may_move_together(adapter, tmp_path):
    wanted = logits_of(load_model(adapter))
    shutil.move(tmp_path / "base", tmp_path / "elsewhere" / "base")
    shutil.move(adapter, tmp_path / "elsewhere" / "adapter")
    assert torch.equal(logits_of(load_model(tmp_path / "elsewhere" / "adapter")), wanted)
    shutil.rmtree(tmp_path / "elsewhere" / "base")
    with pytest.raises(UserError, match=r"the model that it belongs to .* is not there; put it back"):
        load_model(tmp_path / "elsewhere" / "adapter")


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "none"])
def test_weights_that_do_not_fit_are_an_error(adapter, fault):
    path = adapter / "adapter_model.safetensors"
    state = load_file(path)
    first = next(iter(state))
    if fault == "missing":
        del state[first]
    elif fault == "unexpected":
        state[first.replace("layers.0", "layers.7")] = state[first].clone()
    elif fault == "shape":
        state[first] = state[first][:, :-1].contiguous()
    else:
        state = {}
    save_file(state, path)
    with pytest.raises(UserError, match="does not fit"):
        load_model(adapter)


def test_layers_that_are_not_there_are_refused(adapter):
    base = adapter.parent / "base"
    with pytest.raises(UserError, match="no layer is called c_attn; there are down_proj, gate_proj"):
        load_model(base, lora=Lora(target_modules=["q_proj", "c_attn"]))
    with pytest.raises(UserError, match="modules_to_save: no layer is called 'wte'"):
        load_model(base, lora=Lora(modules_to_save=["wte"]))
    with pytest.raises(UserError, match="has an adapter already"):
        load_model(adapter, lora=Lora())
    with pytest.raises(UserError, match="has no adapter to merge"):
        load_merged([base])


def test_an_adapter_of_another_kind_is_refused(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "IA3", "base_model_name_or_path": config["base_model_name_or_path"]})
    )
    with pytest.raises(UserError, match=r"of the kind .*IA3"):
        load_model(adapter)


def test_what_peft_made_is_read(tmp_path):
    """Without our note beside it, and with layers that are saved whole."""
    from peft import LoraConfig, get_peft_model

    base = write_base(tmp_path / "base", tie_word_embeddings=False)
    peer = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=3, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"], init_lora_weights=False),
    )
    with torch.no_grad():
        peer.base_model.model.lm_head.weight.add_(1.0)
    peer.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits_of(load_model(tmp_path / "adapter")), logits_of(peer), atol=1e-4, rtol=1e-4)


def test_bfloat16_activations(adapter):
    model = load_model(adapter)
    wanted = logits_of(model)
    model.compute_dtype = torch.bfloat16
    hidden = model.hidden(input_ids=IDS)[0]
    assert hidden.dtype == torch.bfloat16
    assert (model.logits(hidden) - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_only_the_adapter_is_trained(tmp_path):
    base = write_base(tmp_path / "base")
    model = load_model(base)
    attach(model, Lora(r=2), base)
    assert all("lora_" in name for name in model.trained_names())


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
def test_several_adapters_are_added_by_weights_as_by_peft(family, tmp_path):
    base = write_base(tmp_path / "base", family)
    parts = [tmp_path / "one", tmp_path / "two"]
    for part, steps in zip(parts, (5, 9), strict=True):
        with_adapter(base, part, steps=steps)
    found = logits_of(load_merged(parts, [0.7, -0.4]))
    peer = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), parts[0], "one")
    plain = load_model(base).weights()
    wanted = {}
    for part in parts:
        for name, weight in load_merged([part]).weights().items():
            wanted.setdefault(name, plain[name].clone()).add_(
                weight - plain[name], alpha=0.7 if part is parts[0] else -0.4
            )
    for name, weight in load_merged(parts, [0.7, -0.4]).weights().items():
        torch.testing.assert_close(weight, wanted[name], atol=1e-6, rtol=1e-5)
    if family != "qwen2_moe":  # peft adds no experts' adapters up
        peer.load_adapter(parts[1], "two")
        peer.add_weighted_adapter(["one", "two"], [0.7, -0.4], "both", combination_type="cat")
        peer.set_adapter("both")
        torch.testing.assert_close(found, logits_of(peer), atol=1e-4, rtol=1e-4)


def by_peft(base, path, **settings):
    """An adapter that peft made, with random weights; its logits."""
    torch.manual_seed(1)
    targets = ["c_attn", "c_proj"] if "gpt2" in str(base) else ["q_proj", "v_proj"]
    settings = {"target_modules": targets, "r": 4, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return logits_of(model.eval())


EMBEDDED = {"llama": ["q_proj", "embed_tokens"], "gpt2": ["c_attn", "wte"]}
OF_PEFT = {
    "ranks of their own": {"rank_pattern": {"v_proj": 2, "c_proj": 2}, "alpha_pattern": {"v_proj": 5, "c_proj": 5}},
    "one layer": {"layers_to_transform": [1]},
    "rslora": {"use_rslora": True},
    "biases": {"bias": "all"},
    "rows of the embedding": {"trainable_token_indices": [1, 2]},
    "an embedding": {},
    "a head": {"modules_to_save": ["lm_head"]},
    "kasa": {"kasa_config": KasaConfig()},
    "alora": {"alora_invocation_tokens": [3, 4]},
}


@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, kind) for family in ("llama", "gpt2") for kind in OF_PEFT if (family, kind) != ("gpt2", "kasa")],
)
def test_adapters_of_peft_of_every_kind_are_read_rightly_or_refused(family, kind, tmp_path):
    """Those of gpt2 have an embedding in common with the output; peft has no KaSA for its layers."""
    base = write_base(tmp_path / family, family)
    settings = OF_PEFT[kind] | ({"target_modules": EMBEDDED[family]} if kind == "an embedding" else {})
    wanted = by_peft(base, tmp_path / "adapter", **settings)
    if kind == "alora" or (family == "gpt2" and kind in ("rows of the embedding", "an embedding", "a head")):
        with pytest.raises(UserError, match=r"merge it with peft|the two cannot differ here"):
            load_model(tmp_path / "adapter")
        return
    for found in (load_model(tmp_path / "adapter"), load_merged([tmp_path / "adapter"])):
        torch.testing.assert_close(logits_of(found), wanted, atol=1e-4, rtol=1e-4)
    halves = [tmp_path / "adapter"] * 2
    if kind in ("biases", "rows of the embedding", "a head", "kasa"):
        with pytest.raises(UserError, match="so that it is no sum with others; merge it alone"):
            load_merged(halves, [0.5, 0.5])
    else:
        torch.testing.assert_close(logits_of(load_merged(halves, [0.5, 0.5])), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["lm_head", "wte"])
def test_what_is_tied_to_a_layer_that_is_trained_whole_is_saved_with_it(name, tmp_path):
    base = write_base(tmp_path / "gpt2", "gpt2")
    model, _ = with_adapter(base, tmp_path / "adapter", steps=5, modules_to_save=[name])
    peer = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter"
    )
    torch.testing.assert_close(logits_of(peer), logits_of(model), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits_of(load_model(tmp_path / "adapter")), logits_of(model))


def test_what_cannot_be_added_up_is_refused(tmp_path):
    base, other = write_base(tmp_path / "base"), write_base(tmp_path / "other", seed=1)
    for name, on, settings in (
        ("plain", base, {}),
        ("foreign", other, {}),
        ("dora", base, {"dora": True}),
        ("whole", base, {"modules_to_save": ["lm_head"]}),
    ):
        with_adapter(on, tmp_path / name, steps=1, **settings)
    for name, words in (("foreign", "different models"), ("dora", "is DoRA"), ("whole", "trained lm_head whole")):
        with pytest.raises(UserError, match=words):
            load_merged([tmp_path / "plain", tmp_path / name])
    with pytest.raises(UserError, match="is DoRA"):
        load_merged([tmp_path / "dora"], [0.5])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen2", "gpt2", "ernie4_5_moe"])
def test_a_vocabulary_grows_with_an_adapter(family, tied, tmp_path):
    base = write_base(tmp_path / "base", family, tie_word_embeddings=tied)
    names = {"gpt2": ["wte", "lm_head"]}.get(family, ["embed_tokens", "lm_head"])
    ids = torch.cat((IDS, torch.full((2, 3), 99)), 1)
    torch.manual_seed(5)
    lora = Lora(r=4, modules_to_save=names)
    model = load_model(base, lora=lora, change=lambda model: model.grow_vocabulary(97, [[5], [6, 7], []]))
    losses = train(model, lambda: model.loss(model.hidden(input_ids=ids[:, :-1])[0], ids[:, 1:]) / 36, 5)
    assert losses[-1] < losses[0] and model.vocab_size == 100
    model.eval().save(tmp_path / "adapter")
    again, merged = load_model(tmp_path / "adapter"), load_merged([tmp_path / "adapter"])
    assert describe(tmp_path / "adapter")["vocab_size"] == again.vocab_size == merged.vocab_size == 100
    merged.save(tmp_path / "merged")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert peer.config.tie_word_embeddings is tied
    with torch.no_grad():
        wanted = model(ids)
        torch.testing.assert_close(again(ids), wanted)
        torch.testing.assert_close(peer.eval()(ids).logits, wanted, atol=1e-4, rtol=1e-4)
