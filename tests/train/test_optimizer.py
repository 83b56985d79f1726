"""Which weights are trained, and with what rate and decay."""

import re

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mengya.errors import UserError
from mengya.model.load import outline
from mengya.train.engines.single import Engine
from mengya.train.objectives import language_modeling
from mengya.train.optimizer import Optim, ParameterGroup, freeze, parameter_groups
from mengya.train.settings import TrainingConfig

NORM = "model.norm.weight"


def named(model, groups):
    """{(rate, decay): names}"""
    names = {id(p): name for name, p in model.named_parameters()}
    return {(g["lr"], g["weight_decay"]): {names[id(p)] for p in g["params"]} for g in groups}


def test_matrices_decay_and_vectors_do_not(make_model):
    model = make_model()
    found = named(model, parameter_groups(model, Optim(lr=0.01)))
    assert list(found) == [(0.01, 0.1), (0.01, 0.0)]
    assert all("norm" in name for name in found[0.01, 0.0]) and NORM in found[0.01, 0.0]
    assert sum(map(len, found.values())) == len(list(model.parameters()))


def test_the_first_pattern_that_fits_decides(make_model):
    model = make_model()
    groups = [
        ParameterGroup(pattern="model.embed_tokens.*", lr=0.001),
        ParameterGroup(pattern="*layers.1.mlp*", lr=0.02, weight_decay=0.3),
        ParameterGroup(pattern="*norm*", weight_decay=0.05),
        ParameterGroup(pattern="*mlp*", lr=0.5),
    ]
    found = named(model, parameter_groups(model, Optim(lr=0.01, groups=groups)))
    assert found[0.001, 0.1] == {"model.embed_tokens.weight"}
    assert found[0.02, 0.3] == {f"model.layers.1.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")}
    assert found[0.01, 0.05] == {name for name, p in model.named_parameters() if p.ndim == 1}
    assert found[0.5, 0.1] == {f"model.layers.0.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")}
    assert all("self_attn" in name for name in found[0.01, 0.1])
    assert sum(map(len, found.values())) == len(list(model.parameters()))


def test_every_group_follows_the_schedule_from_its_own_peak(make_model):
    optim = Optim(lr=0.01, groups=[ParameterGroup(pattern="*mlp*", lr=0.04)])
    engine = Engine(make_model(), language_modeling(), optim)
    assert engine.set_rate(0.25) == 0.0025
    assert sorted({group["lr"] for group in engine.optimizers[0].param_groups}) == [0.0025, 0.01]
    engine.set_rate(1.0)
    assert sorted({group["lr"] for group in engine.optimizers[0].param_groups}) == [0.01, 0.04]


def test_frozen_weights_are_left_out(make_model):
    model = make_model()
    freeze(model, ["*embed_tokens*", "*layers.0.*"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if "embed_tokens" in n or "layers.0." in n}
    found = named(model, parameter_groups(model, Optim()))
    assert not frozen & set().union(*found.values())
    assert set(model.trained_names()) == set().union(*found.values())


def test_patterns_that_fit_nothing_are_named_with_close_names(make_model):
    with pytest.raises(UserError, match=r"freeze: no trained weight .* like '\*embed_token\.\*'; .*model.embed_tokens"):
        freeze(make_model(), ["*norm*", "*embed_token.*"])
    optim = Optim(groups=[ParameterGroup(pattern="*lm_head*", lr=0.1)])
    with pytest.raises(UserError, match=r"optim.groups: no trained weight .* '\*lm_head\*'; close to it: "):
        parameter_groups(make_model(), optim)  # tied: the embedding's is its only name
    parameter_groups(make_model(tie_word_embeddings=False), optim)
    with pytest.raises(UserError, match=r"freeze=\['\*'\] leaves nothing to train; remove a pattern"):
        freeze(make_model(), ["*"])


def test_a_group_has_sensible_values():
    with pytest.raises(ValueError, match="greater than 0"):
        ParameterGroup(pattern="*", lr=0.0)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        ParameterGroup(pattern="*", weight_decay=2.0)
    with pytest.raises(ValueError, match="pattern"):
        TrainingConfig(optim={"groups": [{"lr": 0.1}]})


def test_deepspeed_and_muon_do_not_fit():
    with pytest.raises(ValueError, match=r'set parallel to "ddp" or "fsdp", or optim\.name = "adamw"'):
        TrainingConfig(parallel="deepspeed", deepspeed="ds.json", optim={"name": "muon"})
    with pytest.raises(ValueError, match="Input should be 'adamw' or 'muon'"):
        TrainingConfig(optim={"name": "lion"})


SHAPES = {
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48),
    "opt": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32),
    "qwen2": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    | dict(intermediate_size=48, tie_word_embeddings=False),
}
BESIDE_THE_LAYERS = {
    "gpt2": ["*wte*", "*wpe*", "*ln_f*"],
    "gpt_neox": ["*embed_*", "*final_layer_norm*", "lm_head*"],
    "opt": ["*embed_*", "*decoder.final_layer_norm*"],
    "qwen2": ["*embed_tokens*", "lm_head*", "model.norm*"],
}
"""Patterns that leave the layers alone to train."""


@pytest.mark.parametrize("kind", SHAPES)
def test_names_of_others_the_embedding_frozen_or_the_layers_alone_trained(kind):
    shape = AutoConfig.for_model(kind, vocab_size=50, **SHAPES[kind]).to_dict()
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    model = outline(shape | {"architectures": [architecture]})
    names = [name for name, _ in model.named_parameters()]
    freeze(model, BESIDE_THE_LAYERS[kind])
    trained = set(model.trained_names())
    assert trained == {name for name in names if re.search(r"\.(h|layers)\.\d+\.", name)} != set(names)
    with pytest.raises(UserError, match="freeze: no trained weight has a name like"):
        freeze(outline(shape | {"architectures": [architecture]}), ["*embd*"])
