"""Continued pretraining, through the command line: from where the model was, on a mixture, with a larger vocabulary."""

import json
import random
import shutil
import tomllib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mengya import manifest
from mengya.cli import main
from mengya.data.shards import Shards, ShardWriter
from mengya.errors import UserError
from mengya.metrics import MetricsLog, read_jsonl
from mengya.model.load import load_model
from mengya.recipe import parse_recipe
from mengya.text.extension import vocabulary
from mengya.text.tokenizer import read_backend, train_tokenizer

from ..conftest import MODEL, write_jsonl

BEGINNING = """
[corpus]
path = "text.jsonl"
heldout = 0.1

[tokenizer]
vocab_size = 285

[tokenize]

[pretrain]
seq_len = 32
batch_tokens = 128
steps = 60
heldout_every = 20
checkpoint_every = 20
compile = false
dtype = "float32"
optim.lr = 1e-2
"""
BEGINNING += MODEL

CONTINUED = """
[corpus_zh]
stage = "corpus"
path = "zh.jsonl"
heldout = 0.1

[tokenizer_zh]
stage = "tokenizer"
corpus = "@corpus_zh"
extend = "@tokenizer"
vocab_size = 315

[tokenize_old]
stage = "tokenize"
tokenizer = "@tokenizer_zh"

[tokenize_zh]
stage = "tokenize"
corpus = "@corpus_zh"
tokenizer = "@tokenizer_zh"

[pretrain_zh]
stage = "pretrain"
init = "@pretrain"
shards = ["@tokenize_old", "@tokenize_zh"]
mixture = [0.3, 0.7]
seq_len = 32
batch_tokens = 128
steps = 30
heldout_every = 10
checkpoint_every = 5
compile = false
dtype = "float32"
optim.lr = 5e-3
optim.warmup = 0.2
"""

WORDS = ["spring", "summer", "the", "cat", "sat", "on", "a", "mat", "ran", "home"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The whole recipe, run."""
    folder = tmp_path_factory.mktemp("continued")
    choice, poem = random.Random(0).choice, "春眠不覺曉處處聞啼鳥夜來風雨聲花落知多少"
    words = [" ".join(choice(WORDS) for _ in range(30)) + f" {i}." for i in range(200)]
    verses = [f"{poem[i % 15 : i % 15 + 5]}，{poem[i % 11 : i % 11 + 7]}。{poem[i % 7 :]}{i}" for i in range(120)]
    for name, texts in (("text", words), ("zh", verses)):
        write_jsonl(folder / f"{name}.jsonl", [{"text": text} for text in texts])
    text = (BEGINNING + CONTINUED).replace('path = "', f'path = "{folder.as_posix()}/')
    (folder / "continued.toml").write_text(text, encoding="utf-8")
    assert main(["run", str(folder / "continued.toml"), "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def out(project, tmp_path):
    """A copy of what the recipe made, which a test may spoil."""
    return shutil.copytree(project / "run", tmp_path / "run")


@pytest.fixture
def again(project, out, capsys):
    """again(*overrides) -> exit code, standard output and error of the recipe, run again."""

    def again(*overrides):
        capsys.readouterr()
        code = main(["run", str(project / "continued.toml"), *overrides, "--out", str(out)])
        return code, *capsys.readouterr()

    return again


def rows(out, stage="pretrain_zh"):
    return list(read_jsonl(out / stage / "metrics.jsonl"))


def same(row):
    return {key: value for key, value in row.items() if key != "tokens_per_second"}


def test_every_stage_has_a_directory_of_its_name_and_a_rerun_skips(again, out):
    code, shown, _ = again()
    names = ["corpus", "tokenizer", "tokenize", "pretrain", "corpus_zh", "tokenizer_zh", "tokenize_old", "tokenize_zh"]
    names += ["pretrain_zh"]
    assert code == 0 and shown.splitlines() == [f"✓ {name}: already there" for name in names]
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == sorted(names)
    record = manifest.read(out / "pretrain_zh")
    assert record["config"]["stage"] == "pretrain" and record["config"]["mixture"] == [0.3, 0.7]
    assert [entry["path"] for entry in record["inputs"] if entry["field"] == "shards"] == [
        "../tokenize_old",
        "../tokenize_zh",
    ]


def test_it_goes_on_from_where_the_model_was_with_a_new_warm_up(out):
    before, after = rows(out, "pretrain"), rows(out)
    old = "heldout_loss/tokenize_old"
    assert after[0]["lr"] < after[3]["lr"] < after[5]["lr"] == 5e-3 > after[-1]["lr"]
    assert abs(after[9][old] - before[-1]["heldout_loss"]) < 0.25 < before[0]["loss"] - before[-1]["heldout_loss"]
    assert after[-1]["heldout_loss/tokenize_zh"] < after[9]["heldout_loss/tokenize_zh"]


def test_heldout_loss_is_reported_for_each_source_and_for_the_mixture(out):
    measured = [row for row in rows(out) if "heldout_loss" in row]
    assert [row["step"] for row in measured] == [10, 20, 30]
    for row in measured:
        old, new = row["heldout_loss/tokenize_old"], row["heldout_loss/tokenize_zh"]
        assert row["heldout_loss"] == pytest.approx(0.3 * old + 0.7 * new)
        bits = row["heldout_bits_per_byte/tokenize_old"], row["heldout_bits_per_byte/tokenize_zh"]
        assert min(bits) < row["heldout_bits_per_byte"] < max(bits)
    assert not any("/" in key for row in rows(out, "pretrain") for key in row)


def test_the_vocabulary_grew_and_old_ids_mean_what_they_meant(out):
    old, new = read_backend(out / "pretrain"), read_backend(out / "pretrain_zh")
    assert vocabulary(new)[:285] == vocabulary(old) and len(vocabulary(new)) == 315
    assert load_model(out / "pretrain_zh").config.vocab_size == 315
    counts = [json.loads((out / name / "train/shards.json").read_text()) for name in ("tokenize", "tokenize_old")]
    assert counts[1]["tokens"] <= counts[0]["tokens"] and counts[1]["bytes"] == counts[0]["bytes"]
    text = "春眠不覺曉，the cat"
    assert len(new.encode(text).ids) < len(old.encode(text).ids)
    peer = AutoModelForCausalLM.from_pretrained(out / "pretrain_zh", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(out / "pretrain_zh")(text, return_tensors="pt").input_ids
    assert ids.tolist() == [new.encode(text).ids]
    with torch.no_grad():
        torch.testing.assert_close(load_model(out / "pretrain_zh")(ids), peer(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("step", [3, 13, 30])
def test_a_crash_and_the_same_again_is_the_undisturbed_run(again, out, project, monkeypatch, step):
    shutil.rmtree(out / "pretrain_zh")
    write = MetricsLog.write

    def crash(log, row):
        if row["step"] == step:
            raise InterruptedError
        write(log, row)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", crash)
        with pytest.raises(InterruptedError):
            again()
    code, shown, _ = again()
    assert code == 0 and ("going on after step" in shown) == (step > 5)
    assert [same(row) for row in rows(out)] == [same(row) for row in rows(project / "run")]
    weights, undisturbed = (load_file(root / "pretrain_zh/model.safetensors") for root in (out, project / "run"))
    assert all(torch.equal(weights[name], undisturbed[name]) for name in undisturbed)


def test_several_corpora_are_tokenized_as_one_each_document_once(project, again, out):
    corpora = '["@corpus", "@corpus_zh", "@corpus"]'
    shutil.rmtree(out / "tokenize_zh")
    shutil.rmtree(out / "pretrain_zh")
    code, _, _ = again(f"tokenize_zh.corpus={corpora}", "pretrain_zh.mixture=[1, 1]")
    assert code == 0
    for split in ("train", "heldout"):
        parts = [Shards(project / "run" / name / split) for name in ("tokenize_old", "tokenize_zh")]
        joined = Shards(out / "tokenize_zh" / split)
        assert len(joined) == sum(len(part) for part in parts)
        assert joined.tokens[:].tolist() == np.concatenate([part.tokens[:] for part in parts]).tolist()
        assert [*joined.origins()] == [origin for part in parts for origin in part.origins()]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mixture=[1]"], "pretrain_zh: mixture=[1.0] must have one weight for each of the 2 shards"),
        (["mixture=[1, 0]"], "pretrain_zh: mixture=[1.0, 0.0] must have weights greater than 0; leave out"),
        (["mixture=[1, -1]"], "pretrain_zh: mixture=[1.0, -1.0] must have weights greater than 0"),
        (["mixture=[1, nan]"], "pretrain_zh.mixture.1: input should be a finite number (it is nan)"),
        (["mixture=0.5"], "pretrain_zh.mixture: input should be a valid list (it is 0.5)"),
        (["shards=[]"], "must have one weight for each of the 0 shards"),
        (["model.hidden_size=32"], "pretrain_zh.model.num_hidden_layers: must be set"),
    ],
)
def test_faults_that_are_found_before_anything_runs(again, overrides, message):
    code, _, error = again(*(f"pretrain_zh.{override}" for override in overrides))
    assert code == 2 and message in error and "is not valid:" in error


def test_exactly_one_of_a_shape_and_a_directory():
    recipe = tomllib.loads(BEGINNING.replace('path = "text.jsonl"', "schoolbook = true"))
    recipe["pretrain"]["init"] = "models/base"
    with pytest.raises(UserError, match="pretrain: init='models/base' has a shape of its own; remove it, or the table"):
        parse_recipe("r", recipe, "r.toml", check_paths=False)
    del recipe["pretrain"]["init"]
    recipe["pretrain"]["freeze"] = ["*norm*"]
    with pytest.raises(UserError, match=r"freeze=\['\*norm\*'\] would keep random weights; remove it, or set init"):
        parse_recipe("r", recipe, "r.toml", check_paths=False)
    del recipe["pretrain"]["model"]
    with pytest.raises(UserError, match=r"pretrain: there is no model: set the table model .* or init to go on"):
        parse_recipe("r", recipe, "r.toml", check_paths=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ['shards=["@tokenize", "@tokenize_zh"]'],
            "were made with different tokenizers; tokenize both with the same one",
        ),
        (['shards=["@tokenize_zh", "@tokenize_zh"]'], "tokenize_zh is given twice; give it once, with a larger weight"),
        (
            ['shards=["@tokenize_zh", "@corpus"]'],
            "'@corpus' makes a corpus, not shards; use @tokenize or",
        ),
        (['shards=["@tokenize_zh", "@tokenizer_zh"]'], "'@tokenizer_zh' makes a tokenizer, not shards"),
        (["init=@tokenize"], "'@tokenize' makes shards, not a model; use @pretrain"),
        (["seq_len=256", "batch_tokens=512"], "seq_len=256 is longer than the model's context of 128; lower it"),
    ],
)
def test_inputs_that_do_not_fit(again, out, overrides, message):
    shutil.rmtree(out / "pretrain_zh")
    code, _, error = again(*(f"pretrain_zh.{override}" for override in overrides))
    assert code == 2 and message in error
    assert not (out / "pretrain_zh").exists()


def test_growing_by_nothing_is_refused(again, out):
    shutil.rmtree(out / "tokenizer_zh")
    code, _, error = again("tokenizer_zh.vocab_size=285")
    assert code == 2 and "vocab_size=285 leaves no room: the tokenizer to extend has 285 entries" in error


def test_shards_without_a_document(again, out):
    shutil.rmtree(out / "pretrain_zh")
    with ShardWriter(out / "tokenize_zh" / "heldout", 315):
        pass
    code, _, error = again()
    assert code == 2 and "is damaged" in error  # the manifest knows the size
    (out / "tokenize_zh" / "stage.json").unlink()
    assert again()[0] == 2
    shutil.copytree(out / "tokenize_zh", out.parent / "elsewhere")
    shutil.rmtree(out / "tokenize_zh")
    code, _, error = again(f'pretrain_zh.shards=["@tokenize_old", "{out.parent.as_posix()}/elsewhere"]')
    assert code == 2 and "heldout does not hold a document; give more text or a smaller held-out share" in error


def test_a_foreign_vocabulary_is_refused_with_the_first_id(project, again, out):
    other = train_tokenizer(["春眠不覺曉，處處聞啼鳥。"] * 9, 285, 9)
    for name in ("train", "heldout"):
        with ShardWriter(out.parent / "foreign" / name, 285) as writer:
            writer.append(other.encode("春眠不覺曉"))
    other.save(out.parent / "foreign")
    shutil.rmtree(out / "pretrain_zh")
    code, _, error = again(f'pretrain_zh.shards=["{out.parent.as_posix()}/foreign"]', "pretrain_zh.mixture=[1]")
    assert code == 2 and "does not extend that of" in error and "id 259 is" in error
