"""What can be known before the first stage runs is refused before it, by `run` and by `plan`."""

import json
import shutil

import pytest

from mengya.errors import UserError
from mengya.plan import print_plan
from mengya.recipe import load_recipe

from ..conftest import MODEL, write_jsonl

RECIPE = f"""
[corpus]
schoolbook = true
[tokenizer]
vocab_size = 300
[tokenize]
[pretrain]
seq_len = 64
batch_tokens = 256
{MODEL}
[sft]
path = "@corpus/conversations.jsonl"
seq_len = 64
batch_tokens = 256
[dpo]
path = "@corpus/preferences.jsonl"
seq_len = 64
batch_tokens = 256
[evaluate]
models = ["@pretrain", "@sft", "@dpo"]
questions = "@corpus/questions.jsonl"
preferences = "@corpus/heldout_preferences.jsonl"
"""
CONTINUED = """
[more]
stage = "pretrain"
init = "@pretrain"
seq_len = 64
batch_tokens = 256
"""
INIT = [f"pretrain.model.{line.split()[0]}=1" for line in MODEL.split("\n")[2:-1]]


@pytest.fixture
def folder(tmp_path, monkeypatch, everything):
    """With recipes r.toml and continued.toml, a directory here/ that is whatever is wanted, and some files."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(everything, tmp_path / "here")
    for name in ("small", "plain", "cut"):
        shutil.copytree(everything, tmp_path / name)
    (tmp_path / "plain" / "tokenizer_config.json").write_text("{}")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (tmp_path / "empty").mkdir()
    write_jsonl(tmp_path / "talks.jsonl", [{"prompt": "a", "response": "b"}])
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "continued.toml").write_text(f'base = "r.toml"\n{CONTINUED}')
    return tmp_path


def problems(folder, *overrides, recipe="continued.toml", **options) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(folder / recipe, list(overrides), **options)
    return [line.strip() for line in str(caught.value).split("\n")[1:]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sft.seq_len=1024", "sft.batch_tokens=1024"],
            "sft: seq_len=1024 is longer than the model's context of 128; lower it",
        ),
        (
            ["more.seq_len=256"],
            "more: seq_len=256 is longer than the model's context of 128; lower it",
        ),
        (
            ["dpo.model=here", "dpo.seq_len=2048", "dpo.batch_tokens=2048"],
            "dpo: seq_len=2048 is longer than the model's context of 1024; lower it",
        ),
        (["pretrain.model.vocab_size=299"], "pretrain: vocab_size=299 is smaller than the tokenizer's 300; remove it"),
        (["tokenizer.vocab_size=100"], "tokenizer: vocab_size=100 is below the 259 bytes and control tokens; try 6400"),
        (
            ["tokenizer.extend=here"],
            "tokenizer: vocab_size=300 leaves no room: the tokenizer to extend has 300 entries",
        ),
        (["tokenizer.extend=plain", "tokenizer.vocab_size=300"], "tokenizer: vocab_size=300 leaves no room"),
        (["tokenize.tokenizer=empty"], "tokenize.tokenizer: no tokenizer.json in empty; give a directory that"),
        (["tokenize.corpus=empty"], "tokenize.corpus: empty is not a corpus (it has no train.jsonl); use the output"),
        (["more.shards=empty"], "more.shards: no tokenizer.json in empty"),
        (["more.shards=[@tokenize,here,here]"], "more: here is given twice; give it once, with a larger weight"),
        (
            ["tokenizer.vocab_size=310", "more.shards=[@tokenize,here]"],
            "more: the shards, of 300 and 310 entries, were",
        ),
        (
            ["tokenizer.vocab_size=290", "more.init=here"],
            "more: the shards' tokenizer has 290 entries, fewer than the 300",
        ),
        (["sft.model=empty"], "sft.model: empty is not a model directory (it has no config.json); give one that"),
        (["more.init=cut"], "more.init: cut/model.safetensors cannot be read ("),
        (
            ["sft.model=@pretrain/best"],
            "sft.model: '@pretrain/best' is a part of a directory; give the whole, \"@pretrain",
        ),
        (["evaluate.models=[he*]"], "evaluate.models: 'he*' is a pattern; name each directory by itself"),
        (
            ["sft.freeze=[*embd*]"],
            "sft: freeze: no trained weight has a name like '*embd*'; close to it: model.embed_tok",
        ),
        (["dpo.freeze=[*]"], "dpo: freeze=['*'] leaves nothing to train; remove a pattern"),
        (["more.optim.groups=[{pattern=*q_prj*}]"], "more: optim.groups: no trained weight has a name like '*q_prj*'"),
        (["sft.balance.z_loss_coef=1"], "sft: balance.z_loss_coef is set, but the model has no experts; remove it"),
        (
            ["sft.path=pairs.jsonl"],
            "sft: no conversation was found; check the input (pairs.jsonl:1: a preference pair, not one",
        ),
        (
            ["dpo.path=[talks.jsonl]"],
            "dpo: no preference pair was found; check the input (talks.jsonl:1: no chosen and ",
        ),
        (
            ["dpo.path=@corpus/conversations.jsonl"],
            "dpo: no preference pair was found; check the input (each row is a conversation, not a preference)",
        ),
        (["sft.path=here"], "sft.path: 'here' holds a model, not files of rows; name a file, or another folder"),
        (
            ["sft.path=@corpus/talks.jsonl"],
            "sft.path: '@corpus/talks.jsonl' will not be there; there: @corpus/train.json",
        ),
        (
            ["sft.path=@pretrain/metrics.jsonl"],
            "sft.path: '@pretrain/metrics.jsonl' will not be there; [pretrain] writes",
        ),
        (
            ["evaluate.questions=@corpus/train.jsonl"],
            "evaluate: questions='@corpus/train.jsonl' has rows of another kind",
        ),
        (
            ["evaluate.questions=empty"],
            "evaluate: cannot read the questions empty: Is a directory; give the path of a .",
        ),
        (
            ["evaluate.preferences=talks.jsonl"],
            "evaluate: preferences has no usable pair; check the input (talks.jsonl:1",
        ),
        (["evaluate.models=[@sft,./sft]"], "evaluate.models: './sft' does not exist; correct the path"),
        (
            ["evaluate.models=[@sft,@dpo,@sft]"],
            "evaluate: models has two directories of one name (sft, dpo, sft); rename",
        ),
        (["corpus.path=empty"], "corpus: nothing to read in empty; supported are .txt .md"),
    ],
)
def test_known_before_anything_runs(folder, overrides, message):
    overrides = ["evaluate.questions=@corpus/questions.jsonl", *overrides]
    lines = problems(folder, *overrides)
    assert any(line.startswith(message) for line in lines), lines
    assert len(lines) == 1 or all(line.startswith(("dpo:", message[:8])) for line in lines), lines


def test_the_recipe_that_the_faults_are_in_has_none(folder):
    assert len(load_recipe(folder / "continued.toml", []).stages) == 8


def test_all_faults_at_once(folder):
    overrides = ["corpus.heldotu=1", "sft.seq_len=1024", "sft.batch_tokens=1024", "sft.freeze=[*nothing*]"]
    lines = problems(folder, *overrides, "dpo.path=gone.jsonl", "evaluate.models=@tokenizer")
    keys = [line.split(":")[0] for line in lines]
    assert keys == ["corpus.heldotu", "sft", "sft", "dpo.path", "evaluate.models"]


def test_what_a_model_lacks_goes_on_to_the_stages_that_use_it(folder):
    """A model whose tokenizer has no chat template: the run would fail at the first stage that needs one."""
    lines = problems(folder, "tokenize.tokenizer=plain", recipe="r.toml")
    assert lines == [
        'sft: plain has no chat template; name one of ours in the recipe, e.g. sft.template = "chatml"',
        'evaluate: plain has no chat template; name one of ours in the recipe, e.g. sft.template = "chatml"',
    ]


def test_stages_after_the_last_one_of_a_run_are_not_asked(folder):
    overrides = ["sft.seq_len=1024", "sft.batch_tokens=1024"]
    assert load_recipe(folder / "r.toml", overrides, out=folder / "run", until="pretrain").stages
    assert len(problems(folder, *overrides, recipe="r.toml", out=folder / "run", until="sft")) == 1


def test_what_these_processes_cannot_run_is_told_with_the_rest(folder):
    overrides = ["sft.parallel=fsdp", "pretrain.micro_batch=3", "sft.seq_len=1024", "sft.batch_tokens=1024"]
    assert [line.split(":")[0] for line in problems(folder, *overrides, recipe="r.toml")] == ["sft"]
    lines = problems(folder, *overrides, recipe="r.toml", out=folder / "run")
    assert [line.split(":")[0] for line in lines] == ["pretrain", "sft", "sft"]
    (folder / "run" / "pretrain").mkdir(parents=True)  # done: it need not run again
    assert len(problems(folder, *overrides, recipe="r.toml", out=folder / "run")) == 2


def test_an_artifact_where_files_are_wanted(folder):
    record = {"stage": "corpus", "fingerprint": "0", "inputs": [], "makes": ["corpus"]}
    (folder / "empty" / "stage.json").write_text(json.dumps(record))
    (line,) = problems(folder, "sft.path=empty", recipe="r.toml")
    assert line == "sft.path: 'empty' holds a corpus, not files of rows; name a file in it"


def test_plan_refuses_the_same(folder):
    with pytest.raises(UserError, match="seq_len=1024 is longer than the model's context of 128"):
        print_plan(load_recipe(folder / "r.toml", ["sft.seq_len=1024", "sft.batch_tokens=1024"]), folder / "run")
