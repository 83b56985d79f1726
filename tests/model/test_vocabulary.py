"""A larger vocabulary: old rows and old logits stay, new rows are what their pieces were, others are refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from mengya.errors import UserError
from mengya.model.load import load_model
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM
from mengya.model.vocabulary import adopt_tokenizer
from mengya.text.extension import extend_tokenizer, pieces_of_new
from mengya.text.tokenizer import read_backend, train_tokenizer

OLD = ["The quick brown fox jumps over the lazy dog."] * 9
NEW = ["春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。"] * 9
SIZE, GROWN = 280, 310


def make_model(tied=True, rows=SIZE, **changes):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.2}
    model = CausalLM(ModelConfig(vocab_size=rows, tie_word_embeddings=tied, **(shape | changes)))
    model.initialize(torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    path = tmp_path_factory.mktemp("old")
    train_tokenizer(OLD, SIZE, 12).save(path)
    return path


@pytest.fixture(scope="module")
def new(old, tmp_path_factory):
    path = tmp_path_factory.mktemp("new")
    extend_tokenizer(read_backend(old), NEW, GROWN, 12).save(path)
    return path


@pytest.fixture
def ids(old):
    return torch.tensor([read_backend(old).encode("the lazy 狐狸 jumps").ids])


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_old_tokens_stay_and_new_rows_are_means_of_their_pieces(old, new, ids, tied):
    model, before = make_model(tied), make_model(tied)
    assert adopt_tokenizer(model, old, read_backend(new)) == GROWN - SIZE
    pieces = pieces_of_new(read_backend(old), read_backend(new))
    for weight, source in (
        (model.model.embed_tokens.weight, before.model.embed_tokens.weight),
        (model.lm_head.weight, before.lm_head.weight),
    ):
        assert weight.shape == (GROWN, 32) and weight.requires_grad
        assert torch.equal(weight[:SIZE], source)
        for row, spelled in zip(weight[SIZE:], pieces, strict=True):
            torch.testing.assert_close(row, torch.stack([source[i] for i in spelled]).mean(0))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[..., :SIZE], before(ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_grown_model_is_saved_as_one_that_transformers_loads(old, new, ids, tied, tmp_path):
    model = make_model(tied)
    adopt_tokenizer(model, old, read_backend(new))
    model.save(tmp_path)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(peer(ids).logits, model(ids), rtol=0, atol=1e-4)
        assert torch.equal(load_model(tmp_path)(ids), model(ids))
    assert model.config.vocab_size == peer.config.vocab_size == GROWN


def test_a_model_with_experts_grows_too(old, new, ids, tmp_path):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1}
    model, before = make_model(**experts), make_model(**experts)
    adopt_tokenizer(model, old, read_backend(new))
    model.save(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[..., :SIZE], before(ids), rtol=0, atol=1e-6)
        torch.testing.assert_close(load_model(tmp_path)(ids), model(ids), rtol=0, atol=1e-6)


def test_a_token_without_pieces_is_the_mean_of_all():
    model = make_model(tied=False)
    embedding = model.model.embed_tokens.weight.detach().clone()
    model.grow_vocabulary(SIZE, [[], [3, 5, 5]])
    torch.testing.assert_close(model.model.embed_tokens.weight[SIZE], embedding.mean(0))
    torch.testing.assert_close(model.model.embed_tokens.weight[SIZE + 1], (embedding[3] + 2 * embedding[5]) / 3)


def test_spare_rows_are_used_before_rows_are_added(old, new):
    model = make_model(rows=GROWN + 10)
    spare = model.model.embed_tokens.weight[GROWN:].detach().clone()
    unused = model.model.embed_tokens.weight[SIZE:GROWN].detach().clone()
    adopt_tokenizer(model, old, read_backend(new))
    assert model.config.vocab_size == GROWN + 10 and torch.equal(model.model.embed_tokens.weight[GROWN:], spare)
    assert not torch.equal(model.model.embed_tokens.weight[SIZE:GROWN], unused)
    assert model.model.embed_tokens.weight[SIZE:GROWN].norm() < 0.9 * unused.norm(), "means are shorter"


def test_the_same_tokenizer_changes_nothing(old, tmp_path):
    model = make_model()
    weight = model.model.embed_tokens.weight
    assert adopt_tokenizer(model, old, read_backend(old)) == 0
    assert adopt_tokenizer(model, tmp_path, read_backend(old)) == 0  # no tokenizer, but the size is right
    assert model.model.embed_tokens.weight is weight


def test_what_does_not_extend_the_models_tokenizer_is_refused(old, new, tmp_path):
    other = train_tokenizer(NEW, SIZE, 12)._backend
    with pytest.raises(UserError, match=r"does not extend .*: id 259 is '.+' there, and '.+' in the shards; tokenize"):
        adopt_tokenizer(make_model(), old, other)
    with pytest.raises(UserError, match=rf"id {SIZE} is '.+' there, and not in the {SIZE} entries of the shards"):
        adopt_tokenizer(make_model(rows=GROWN), new, read_backend(old))
    with pytest.raises(
        UserError, match=rf"no tokenizer.json, and its {SIZE} embedding rows are not the {GROWN} entries"
    ):
        adopt_tokenizer(make_model(), tmp_path, read_backend(new))
    with pytest.raises(UserError, match=rf"has {GROWN} entries but the model only {SIZE} embedding rows"):
        adopt_tokenizer(make_model(), new, read_backend(new))
    (tmp_path / "tokenizer.json").write_text(json.dumps([]), encoding="utf-8")
    with pytest.raises(UserError, match="is not a readable tokenizer"):
        adopt_tokenizer(make_model(), tmp_path, read_backend(new))
