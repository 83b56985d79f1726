"""The interface of a model: frozen parts cost nothing, wrapped ones are honoured or refused, missing ones are named."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from mengya.batch import IGNORE
from mengya.errors import UserError
from mengya.model import load
from mengya.model.language_model import LanguageModel
from mengya.model.load import describe, load_model, outline
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM
from mengya.runtime import compiler_missing

from .conftest import in_pieces

SHAPE = dict(
    vocab_size=70, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    intermediate_size=96, max_position_embeddings=64, initializer_range=0.2,
)  # fmt: skip
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1)
IDS = torch.randint(0, 70, (2, 40), generator=torch.Generator().manual_seed(1))
LINEAR = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def build(**changes) -> CausalLM:
    model = CausalLM(ModelConfig(**(SHAPE | changes)))
    model.initialize(torch.Generator().manual_seed(0))
    return model


def total_loss(model: CausalLM) -> torch.Tensor:
    hidden, _ = model.hidden(input_ids=IDS[:, :-1])
    return model.loss(hidden, IDS[:, 1:])


# --- the output projection --------------------------------------------------------------------------------------------


class Shapes(TorchDispatchMode):
    """Shapes and types of all tensors that operations make; views of `weight` are not made."""

    def __init__(self, weight):
        super().__init__()
        self.seen, self._own = set(), weight.untyped_storage().data_ptr()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self._own:
                self.seen.add((tuple(tensor.shape), tensor.dtype))
        return out


@pytest.mark.parametrize("kind", ["loss", "log_probs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_projection_of_152000_entries_gets_no_gradient_tensor(kind, dtype):
    entries, width, rows = 152_000, 32, 300
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, rows, width, generator=generator).to(dtype)
    weight = torch.randn(entries, width, generator=generator)
    labels = torch.randint(0, entries, (1, rows), generator=generator)
    labels[0, ::3] = IGNORE

    class Head(LanguageModel):
        def __init__(self, weight):
            super().__init__()
            self.weight = weight

        @property
        def output_weight(self):
            return self.weight

    found = []
    for frozen in (False, True):
        h, w = hidden.clone().requires_grad_(), nn.Parameter(weight, requires_grad=not frozen)
        model = Head(w)
        with Shapes(w) as shapes:
            (model.loss(h, labels) if kind == "loss" else -model.log_probs(h, labels).sum()).backward()
        # The one copy of that shape is the weight in the type of the activations, where that is another.
        whole = {kind for shape, kind in shapes.seen if sorted(shape) == [width, entries]} - {torch.bfloat16}
        assert bool(whole) != frozen and (w.grad is None) == frozen
        found.append(h.grad)
    assert found[0].abs().sum() > 0 and torch.equal(*found)


def test_loss_log_probs_and_logits_agree():
    model = build(tie_word_embeddings=False)
    hidden, routings = model.hidden(input_ids=IDS)
    labels = IDS.masked_fill(torch.rand(IDS.shape, generator=torch.Generator().manual_seed(2)) < 0.3, IGNORE)
    wanted = F.cross_entropy(model.logits(hidden).flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    torch.testing.assert_close(model.log_probs(hidden, labels), -wanted)
    torch.testing.assert_close(model.loss(hidden, labels), wanted.sum())
    with torch.no_grad():
        torch.testing.assert_close(model.loss(hidden, labels), wanted.sum())
    assert routings == [] and torch.equal(model(IDS), model.logits(hidden))


# --- adapters ---------------------------------------------------------------------------------------------------------


class Lora(nn.Module):
    """As peft wraps a linear layer: with a `weight` property, which is that of the layer inside."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base_layer = base
        self.a = nn.Parameter(torch.randn(4, base.in_features) * 0.1)
        self.b = nn.Parameter(torch.randn(base.out_features, 4) * 0.1)
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + F.linear(F.linear(x.to(self.a.dtype), self.a), self.b)


class Low(nn.Module):
    """A parametrisation: the weight and a product of two thin matrices."""

    def __init__(self, shape):
        super().__init__()
        *_, rows, columns = shape
        self.a, self.b = nn.Parameter(torch.randn(4, columns) * 0.1), nn.Parameter(torch.randn(rows, 4) * 0.1)

    def forward(self, weight):
        return weight + self.b @ self.a


def wrap(model: CausalLM, name: str) -> None:
    parent = model.get_submodule(f"model.layers.{len(model.blocks()) - 1}." + name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], Lora(getattr(parent, name.rpartition(".")[2])))


def parametrise(model: CausalLM, name: str) -> None:
    layer = model.get_submodule(f"model.layers.{len(model.blocks()) - 1}." + name)
    parametrize.register_parametrization(layer, "weight", Low(layer.weight.shape))


def merged(model: CausalLM, name: str) -> CausalLM:
    """A plain model with the adapter inside its weight."""
    plain, layer = build(), model.get_submodule(f"model.layers.{len(model.blocks()) - 1}." + name)
    with torch.no_grad():
        weight = layer.weight + layer.b @ layer.a if isinstance(layer, Lora) else layer.weight
        plain.get_submodule(f"model.layers.{len(model.blocks()) - 1}." + name).weight.copy_(weight)
    return plain


@pytest.mark.parametrize("change", [wrap, parametrise])
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_changed_layer_is_honoured(change, name, dtype):
    torch.manual_seed(0)
    model = build()
    model.requires_grad_(False)
    change(model, name)
    model.compute_dtype = dtype
    loss = total_loss(model)
    loss.backward()
    loss = loss.detach()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == 2 and all(g.abs().sum() > 0 for g in gradients.values())
    plain, unchanged = merged(model, name), build()
    for other in (plain, unchanged):
        other.compute_dtype = dtype
    close = 1e-5 if dtype == torch.float32 else 3e-3
    assert float(loss) == pytest.approx(float(total_loss(plain).detach()), rel=close)
    with torch.no_grad():
        assert float(total_loss(model)) == pytest.approx(float(loss), rel=close)
        assert abs(float(total_loss(model)) - float(total_loss(unchanged))) > 0.01
        ours, theirs = (in_pieces(owner.steps(128), IDS.tolist(), [(IDS.shape[1],) * 2]) for owner in (model, plain))
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.2)


@pytest.mark.skipif(compiler_missing("cpu") is not None, reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_is_honoured_too(dtype):
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = build(num_hidden_layers=1)
        model.requires_grad_(False)
        wrap(model, "self_attn.q_proj")
        parametrise(model, "mlp.up_proj")
        model.compute_dtype = dtype
        if compiled:
            model.compile_blocks()
        loss = total_loss(model)
        loss.backward()
        found.append((float(loss.detach()), [p.grad for p in model.parameters() if p.requires_grad]))
    assert len(found[1][1]) == 4 and found[1][0] == pytest.approx(found[0][0], rel=1e-2)
    for eager, fused in zip(found[0][1], found[1][1], strict=True):
        assert fused.abs().sum() > 0
        torch.testing.assert_close(fused, eager, rtol=0.1, atol=0.05 * float(eager.abs().max()))


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parametrised_experts_are_honoured(name, dtype):
    torch.manual_seed(0)
    model, plain = build(**EXPERTS), build(**EXPERTS)
    model.requires_grad_(False)
    experts = model.model.layers[1].mlp.experts
    parametrize.register_parametrization(experts, name, Low(getattr(experts, name).shape))
    with torch.no_grad():
        getattr(plain.model.layers[1].mlp.experts, name).copy_(getattr(experts, name))
    for each in (model, plain):
        each.compute_dtype = dtype
    loss = total_loss(model)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    assert float(loss.detach()) == pytest.approx(float(total_loss(plain).detach()), rel=1e-5)


def test_hooks_of_a_layer_are_called():
    model, seen = build(), []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda module, args, out: seen.append(out) or out * 2)
    assert float(total_loss(model).detach()) != float(total_loss(build()).detach()) and len(seen) == 1


def test_the_output_projection_may_be_parametrised_but_not_wrapped():
    model = build(tie_word_embeddings=False)
    model.requires_grad_(False)
    parametrize.register_parametrization(model.lm_head, "weight", Low(model.lm_head.weight.shape))
    total_loss(model).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    model = build(tie_word_embeddings=False)
    model.lm_head = Lora(model.lm_head)
    with pytest.raises(UserError, match=r"lm_head is wrapped in Lora, .*; leave lm_head out"):
        total_loss(model)


# --- which implementation ---------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Somebody's model, without anything that the interface asks for."""

    vocab_size = 70
    context = 64


class Half(LanguageModel):
    vocab_size = 70

    def hidden(self, *, input_ids, position_ids=None, starts=None):
        raise AssertionError


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Plain, ["LanguageModel as its base class", "hidden (", "output_weight (the output projection)", "blocks ("]),
        (Half, ["context (", "output_weight (the output projection)", "blocks (", "empty (", "description ("]),
    ],
)
def test_a_class_that_lacks_parts_is_told_all_of_them_before_anything_runs(tmp_path, monkeypatch, kind, words):
    monkeypatch.setitem(load.IMPLEMENTATIONS, "theirs", lambda: kind)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "theirs"}))
    for look in (describe, load_model):
        with pytest.raises(UserError) as caught:
            look(tmp_path)
        message = str(caught.value)
        assert f"the class {kind.__name__} of model_type 'theirs' lacks" in message and "add what" in message
        assert all(word in message for word in words) and "vocab_size (" not in message


def test_what_is_known_of_a_model_without_its_weights(tmp_path):
    build().save(tmp_path)
    model = outline(describe(tmp_path))
    assert (model.vocab_size, model.context, model.has_experts, model.device.type) == (70, 64, False, "meta")
    assert model.all_parameters() == build().all_parameters()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sprout"}))
    with pytest.raises(UserError, match="model_type 'sprout' is implemented neither here nor in the transformers"):
        describe(tmp_path)
    build().save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read"):
        describe(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"lacks model\.safetensors; copy the model again"):
        describe(tmp_path)


def test_a_tied_model_with_another_projection_in_its_file_is_refused(tmp_path):
    build(tie_word_embeddings=False).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(UserError, match=r"tie_word_embeddings is true, but lm_head.weight is not the embedding"):
        load_model(tmp_path)


def test_a_model_without_a_cache_cannot_generate():
    with pytest.raises(UserError, match="a model of the class Half cannot generate text"):
        Half().steps(8)
