"""The recipe for entity recognition, with a tiny random model instead of its own."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mengya.cli import main
from mengya.text.tokenizer import train_tokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "entities.toml"
FIGURES = ("extraction_f1", "extraction_precision", "extraction_recall", "extraction_json")
SMALL = ["corpus.schoolbook=false", "sft.steps=2", "sft.seq_len=256", "sft.batch_tokens=512", "sft.lora.r=2"]
SMALL += ["sft.dtype=float32", "sft.compile=false", 'sft.template="chatml"', "evaluate.heldout_bytes=1000"]
SMALL += ["evaluate.max_new_tokens=8"]


@pytest.fixture
def root(tmp_path):
    """A random model with a tokenizer, a text, and sets in two shapes."""
    text = "王伟在海淀的华光银行工作。\n" * 20
    (tmp_path / "text.txt").write_text(text, "utf-8")
    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    shape |= dict(intermediate_size=48, max_position_embeddings=512, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", vocab_size=290, **shape)).float()
    model.save_pretrained(tmp_path / "base")
    train_tokenizer([text], 290, 16).save(tmp_path / "base")
    sentences = "王 B-PER\n伟 I-PER\n在 O\n海 B-LOC\n淀 I-LOC\n\n下 O\n雨 O\n\n" * 20
    (tmp_path / "train.bio").write_text(sentences + "坏\n", "utf-8")
    (tmp_path / "dev.txt").write_text(sentences, "utf-8")
    return tmp_path


def run(root, out, *overrides):
    given = [f"corpus.path={root / 'text.txt'}", f"sft.model={root / 'base'}", *SMALL, *overrides]
    assert main(["run", str(RECIPE), *given, "--out", str(root / out)]) == 0
    return json.loads((root / out / "evaluate" / "report.json").read_text("utf-8"))


def test_the_recipe_trains_an_adapter_and_reports_f1(root, capsys):
    report = run(root, "whole")
    assert (root / "whole" / "sft" / "adapter_model.safetensors").is_file()
    found = report["stages"]["sft"]
    assert found["extraction_f1"] == report["extraction_f1"] and found["extraction_recall"] == 0
    assert found["intervals"]["extraction_json"]["total"] == 400
    page, markdown = ((root / "whole" / "evaluate" / f"report.{kind}").read_text("utf-8") for kind in ("html", "md"))
    for words in ("Extraction F1", "Recall", "召回率", "Valid JSON"):
        assert words in page and words in markdown
    assert "extraction_f1 0.0%" in capsys.readouterr().out


def test_the_recipe_takes_sets_of_ones_own(root, monkeypatch):
    right = '{"人名": ["王伟"], "地名": ["海淀"]}'
    # A model that always says this is right on one half, and finds too much on the other one.
    monkeypatch.setattr("mengya.stages.evaluate.ask", lambda model, chat, questions, **rest: [right] * len(questions))
    report = run(root, "own", f"sft.path={root / 'train.bio'}", f"evaluate.questions={root / 'dev.txt'}")
    assert [report.get(key) for key in FIGURES] == [2 / 3, 1 / 2, 1, 1]
    assert report["samples"][0]["expected"] == right
    intake = report["intakes"]["sft"][str(root / "train.bio")]
    assert (intake["used"], intake["quarantined"]) == (40, 1)
    aside = json.loads((root / "own" / "sft" / "quarantine.jsonl").read_text("utf-8"))
    assert (aside["line"], aside["reason"]) == (181, "a line that is not a token and a tag")


def test_a_plan_of_the_recipe(root, capsys):
    given = [f"corpus.path={root / 'text.txt'}", f"sft.model={root / 'base'}", *SMALL]
    assert main(["plan", str(RECIPE), *given]) == 0
    assert "evaluate" in capsys.readouterr().out


def test_the_set_is_absent_unless_it_is_asked_for(root, capsys):
    given = [f"corpus.path={root / 'text.txt'}", f"sft.model={root / 'base'}", *SMALL, "corpus.entities=false"]
    assert main(["run", str(RECIPE), *given, "--out", str(root / "out")]) == 2
    assert "corpus.entities is false" in capsys.readouterr().err
