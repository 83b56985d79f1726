"""From a text file, conversations and pairs to an evaluated model, through the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mengya.cli import main
from mengya.manifest import chain
from mengya.model.load import load_model
from mengya.text.chat import Chat

from ..conftest import write_jsonl
from .conftest import three_trainings, write_animals

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
MODELS = ("pretrain", "sft", "dpo")
STAGES = ("corpus", "tokenizer", "tokenize", *MODELS, "evaluate")

SHAPE = """hidden_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 96
max_position_embeddings = 128
"""


def training(steps, seq_len):
    return f"""seq_len = {seq_len}
batch_tokens = {seq_len * 8}
steps = {steps}
heldout_every = 20
checkpoint_every = 50
compile = false
optim.lr = 5e-3
"""


def recipe(corpus, sft, dpo, questions="", vocabulary=330, steps=40, seq_len=64):
    evaluate = '[evaluate]\nmodels = ["@pretrain", "@sft", "@dpo"]\nheldout_bytes = 5000\n'
    return three_trainings(corpus, sft, dpo, training(steps, seq_len), SHAPE, vocabulary) + evaluate + questions


def mengya(*arguments):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "mengya.cli", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, cwd=ROOT)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A recipe on a text file and small conversations and pairs; some rows are broken on purpose."""
    root = tmp_path_factory.mktemp("project")
    write_animals(root)
    broken = {
        "text": '{"text": "half',
        "talks": json.dumps({"instruction": "没有回答"}),
        "pairs": json.dumps({"prompt": "x", "chosen": "y", "rejected": "y"}),
    }
    for name, row in broken.items():
        with open(root / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write(f"{row}\n")
    questions = [
        {"kind": "fact", "id": "1", "prompt": "猫吃什么？", "answer": "鱼", "accept": ["猫吃鱼。"]},
        {"kind": "addition", "id": "2", "prompt": "12+13等于多少？", "answer": "25", "accept": []},
    ]
    write_jsonl(root / "questions.jsonl", questions)
    extra = f'questions = "{root / "questions.jsonl"}"\npreferences = "{root / "pairs.jsonl"}"\n'
    text = recipe(root / "text.jsonl", root / "talks.jsonl", root / "pairs.jsonl", extra)
    (root / "recipe.toml").write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def out(project):
    """The finished run."""
    done = mengya("run", project / "recipe.toml", "--out", project / "out")
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        assert f"▶ {stage}" in done.stdout and f"✓ {stage}" in done.stdout
    return project / "out"


def test_every_stage_left_an_artifact_and_nothing_unfinished(out):
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == sorted(STAGES)
    for stage in STAGES:
        manifest = json.loads((out / stage / "stage.json").read_text(encoding="utf-8"))
        assert manifest["stage"] == stage
        for name, size in manifest["files"].items():
            assert (out / stage / name).stat().st_size == size
    assert [link["stage"] for link in chain([out / "evaluate"])] == list(STAGES)


def test_broken_rows_are_quarantined_with_their_line(out):
    for stage, line in (("corpus", 151), ("sft", 151), ("dpo", 151)):
        rows = [json.loads(x) for x in (out / stage / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [row["line"] for row in rows] == [line] and rows[0]["reason"]


@pytest.mark.parametrize("stage", MODELS)
def test_models_load_in_transformers_with_equal_logits(out, stage):
    peer = AutoModelForCausalLM.from_pretrained(out / stage, dtype=torch.float32)
    ours, chat = load_model(out / stage), Chat.load(out / stage)
    messages = [{"role": "user", "content": "猫吃什么？"}, {"role": "assistant", "content": "鱼。"}]
    ids, _ = chat.encode(messages, add_generation_prompt=True)
    assert (
        AutoTokenizer.from_pretrained(out / stage).apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        == ids
    )
    with torch.no_grad():
        difference = (ours(torch.tensor([ids])) - peer(torch.tensor([ids])).logits).abs().max()
    assert difference < 1e-4
    stops = peer.generation_config.eos_token_id
    assert set(stops if isinstance(stops, list) else [stops]) == (
        {chat.tokenizer.eos_id} if stage == "pretrain" else chat.stop_ids
    )


@pytest.mark.parametrize("stage", MODELS)
def test_metrics_have_one_row_a_step_and_the_loss_falls(out, stage):
    rows = [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 41))
    for row in rows:
        assert row.keys() >= {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second"}
    assert [row["step"] for row in rows if "heldout_loss" in row] == [20, 40]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["heldout_loss"] < rows[0]["loss"]


def test_the_report_has_the_promised_figures(out):
    report = json.loads((out / "evaluate" / "report.json").read_text(encoding="utf-8"))
    keys = {"bits_per_byte", "unigram_bits_per_byte", "bigram_bits_per_byte", "facts_accuracy", "addition_accuracy"}
    assert report.keys() >= keys | {"stages"}
    assert list(report["stages"]) == list(MODELS)
    for figures in report["stages"].values():
        assert figures.keys() >= {"bits_per_byte", "facts_accuracy", "addition_accuracy", "preference_accuracy"}
    assert report["stages"]["pretrain"]["bits_per_byte"] < report["unigram_bits_per_byte"]
    assert report["stages"]["dpo"]["preference_accuracy"] > report["stages"]["pretrain"]["preference_accuracy"]
    page = (out / "evaluate" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "猫吃什么" in page and "http-equiv" not in page
    assert (out / "evaluate" / "report.md").is_file()


def test_training_measured_the_same_bits_as_the_report(out):
    report = json.loads((out / "evaluate" / "report.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (out / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    best = min(row["heldout_bits_per_byte"] for row in rows if "heldout_bits_per_byte" in row)
    assert report["stages"]["pretrain"]["bits_per_byte"] == pytest.approx(best, rel=0.15)


def test_the_second_run_only_says_that_all_is_there(out, project, capsys):
    def times() -> dict:
        return {path: path.stat().st_mtime_ns for path in out.rglob("[!.]*") if path.is_file()}

    before = times()
    assert len(before) > 20
    assert main(["run", str(project / "recipe.toml"), "--out", str(out)]) == 0
    assert capsys.readouterr().out.split("\n") == [*(f"✓ {stage}: already there" for stage in STAGES), ""]
    assert times() == before


def test_other_settings_are_refused_with_what_differs(out, project, capsys):
    arguments = ["run", str(project / "recipe.toml"), "sft.optim.lr=1e-5", "--out", str(out)]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "optim.lr was 0.005, is now 1e-05" in message and "--out" in message


def test_frozen_embeddings_stay(out, project, tmp_path):
    import shutil

    fresh = tmp_path / "out"
    for stage in STAGES[:4]:
        shutil.copytree(out / stage, fresh / stage)
    overrides = ['sft.freeze=["*embed_tokens*"]', "sft.steps=3", "--until", "sft"]
    assert main(["run", str(project / "recipe.toml"), *overrides, "--out", str(fresh)]) == 0
    base, tuned = (load_model(fresh / stage).state_dict() for stage in ("pretrain", "sft"))
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed == base.keys() - {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_real_data_of_mixed_shapes(tmp_path, start):
    files = {
        "corpus": DATA / "pretrain" / "zh_stories_cft.jsonl",
        "sft": DATA / "sft" / "better_ruozhiba_qa.jsonl",
        "dpo": DATA / "preference" / "toolcall_dpo_zh_medicalgpt__noncommercial.jsonl",
    }
    for file in files.values():
        if not file.is_file():
            pytest.skip(f"the shared data lack {file.name}")
    text = recipe(files["corpus"], files["sft"], files["dpo"], vocabulary=1000, steps=10, seq_len=128)
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    done = start("run", tmp_path / "recipe.toml", "--out", tmp_path / "out").wait()
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "evaluate" / "report.json").read_text(encoding="utf-8"))
    assert list(report["stages"]) == list(MODELS)
    assert report["bigram_bits_per_byte"] < report["unigram_bits_per_byte"]
