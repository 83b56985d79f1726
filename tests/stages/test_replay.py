"""Text replayed in fine-tuning, through the command line: it is mixed in, measured, and must fit the tokenizer."""

import json
import shutil

import pytest

from mengya.cli import main
from mengya.metrics import read_jsonl

from .conftest import three_trainings, write_animals

TRAINING = """seq_len = 64
batch_tokens = 512
steps = 30
heldout_every = 10
compile = false
dtype = "float32"
optim.lr = 5e-3
"""
SHAPE = """hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 48
max_position_embeddings = 64
"""
REPLAY = ('{}.replay="@tokenize"', "{}.replay_share=0.4")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    write_animals(folder)
    names = (folder / f"{name}.jsonl" for name in ("text", "talks", "pairs"))
    (folder / "recipe.toml").write_text(three_trainings(*names, TRAINING, SHAPE), encoding="utf-8")
    return folder


def run(project, out, *overrides):
    return main(["run", str(project / "recipe.toml"), *overrides, "--out", str(project / out)])


def last(path):
    return list(read_jsonl(path / "metrics.jsonl"))[-1]


def test_fine_tuning_with_replay_keeps_the_text(project, capsys):
    overrides = [key.format(stage) for stage in ("sft", "dpo") for key in REPLAY]
    assert run(project, "with", *overrides) == 0, capsys.readouterr().err
    for stage in ("corpus", "tokenizer", "tokenize", "pretrain"):
        shutil.copytree(project / "with" / stage, project / "without" / stage)
    assert run(project, "without") == 0
    for stage, noun in (("sft", "conversations"), ("dpo", "pairs")):
        with_text = last(project / "with" / stage)
        assert with_text[f"heldout_loss/{noun}"] > 0 and with_text["heldout_bits_per_byte/text"] > 0
        mean = 0.6 * with_text[f"heldout_loss/{noun}"] + 0.4 * with_text["heldout_loss/text"]
        assert with_text["heldout_loss"] == pytest.approx(mean)
        assert not any("/" in name for name in last(project / "without" / stage))
    before = last(project / "with" / "pretrain")["heldout_bits_per_byte"]
    assert last(project / "with" / "sft")["heldout_bits_per_byte/text"] < before * 1.05
    sources = json.loads((project / "with" / "sft" / "stage.json").read_text("utf-8"))["inputs"]
    assert any(source["path"].endswith("tokenize") for source in sources)


@pytest.mark.parametrize("keys", [[REPLAY[0]], [REPLAY[1]]])
def test_half_of_the_keys_is_refused(project, capsys, keys):
    assert run(project, "half", *(key.format("sft") for key in keys)) == 2
    assert "replay_share=" in capsys.readouterr().err


def test_text_of_another_tokenizer_is_refused_before_anything_runs(project, capsys):
    recipe = (project / "recipe.toml").read_text(encoding="utf-8")
    tables = '[other]\nstage = "tokenizer"\nvocab_size = 300\n\n[shards]\nstage = "tokenize"\ntokenizer = "@other"\n\n'
    (project / "other.toml").write_text(recipe.replace("[pretrain]", f"{tables}[pretrain]", 1), encoding="utf-8")
    arguments = ["run", str(project / "other.toml"), 'sft.replay="@shards"', "sft.replay_share=0.1"]
    assert main([*arguments, "--out", str(project / "other")]) == 2
    assert "different tokenizers" in capsys.readouterr().err
    assert not (project / "other" / "corpus").exists()
