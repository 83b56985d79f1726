"""The plan takes real steps, counts what the run will do, and writes nothing."""

import json

import pytest

from mengya import plan
from mengya.errors import UserError
from mengya.recipe import load_recipe
from mengya.stages.estimates import BYTES_PER_TOKEN
from mengya.train import estimate

from .conftest import MODEL

RECIPE = """
[corpus]
path = "{path}"
[tokenizer]
vocab_size = 300
[tokenize]
[pretrain]
seq_len = 32
batch_tokens = 128
compile = false
dtype = "float32"
epochs = 2.0
"""
RECIPE += MODEL


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text("春天来了，小草发芽。" * 500, encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(RECIPE.format(path=tmp_path / "text.txt"), encoding="utf-8")
    return tmp_path / "recipe.toml"


def printed(capsys) -> tuple[str, dict]:
    out = capsys.readouterr().out
    return out, json.loads(out.strip().splitlines()[-1])


def test_a_plan_counts_steps_and_time_and_writes_nothing(recipe, tmp_path, capsys, monkeypatch):
    seconds = []
    measure = estimate.measure

    def remember(*arguments, **options):
        seconds.append(measure(*arguments, **options, seconds=0.2))
        return seconds[-1]

    monkeypatch.setattr(estimate, "measure", remember)
    plan.print_plan(load_recipe(recipe, []), tmp_path / "run")
    out, summary = printed(capsys)
    bytes_of_text = len("春天来了，小草发芽。".encode()) * 500
    steps = round(2 * bytes_of_text / BYTES_PER_TOKEN / 128)
    assert f" {steps} " in out
    assert seconds[0].step * steps < summary["seconds"] < seconds[0].step * steps * 3 + 60
    assert summary["disk_bytes"] > 0 and not (tmp_path / "run").exists()


def test_more_steps_take_more_time(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "measure", lambda *_, **__: estimate.Measured(1.0, 0.5, 10**9))
    totals = []
    for steps in (100, 300):
        plan.print_plan(load_recipe(recipe, [f"pretrain.steps={steps}"]), tmp_path / "run")
        totals.append(printed(capsys)[1]["seconds"])
    assert totals[1] - totals[0] >= 100


def test_what_cannot_run_is_not_planned(recipe, tmp_path):
    with pytest.raises(UserError, match="pretrain: 4 rows a step are not a multiple of 3 rows a micro-batch"):
        plan.print_plan(load_recipe(recipe, ["pretrain.micro_batch=3"]), tmp_path / "run")


CONTINUED = """
[tokenizer_2]
stage = "tokenizer"
extend = "@tokenizer"
vocab_size = 350
[tokenize_2]
stage = "tokenize"
corpus = ["@corpus", "@corpus"]
tokenizer = "@tokenizer_2"
[pretrain_2]
stage = "pretrain"
init = "@pretrain"
shards = "@tokenize_2"
seq_len = 32
batch_tokens = 128
"""


def test_a_stage_of_another_name_is_planned_with_its_own_data_and_a_grown_vocabulary(
    recipe, tmp_path, capsys, monkeypatch
):
    sizes = []

    def measure(settings, model, objective, per_count):
        sizes.append(model.vocab_size)
        return estimate.Measured(1.0, 0.5, 10**9)

    monkeypatch.setattr(estimate, "measure", measure)
    recipe.write_text(recipe.read_text(encoding="utf-8") + CONTINUED, encoding="utf-8")
    plan.print_plan(load_recipe(recipe, []), tmp_path / "run")
    out, summary = printed(capsys)
    assert sizes == [300, 350]
    bytes_of_text = len("春天来了，小草发芽。".encode()) * 500
    assert f" {round(2 * bytes_of_text / BYTES_PER_TOKEN / 128)} " in out  # the second tokenizes the text twice
    assert "pretrain_2" in out and summary["seconds"] > 0


def test_experts_are_counted_in_all_and_at_work(recipe, tmp_path, capsys, monkeypatch):
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    overrides = [f"pretrain.model.{key}={value}" for key, value in experts.items()]
    loaded = load_recipe(recipe, [*overrides, "pretrain.balance.bias_update_rate=0.001"])
    monkeypatch.setattr(estimate, "measure", lambda *_, **__: estimate.Measured(0.1, 0.1, 1))
    plan.print_plan(loaded, tmp_path / "run")
    # embedding 300 x 32, attention 32 x 96, router 8 x 32, three norms; an expert 3 x 32 x 32
    rest = 300 * 32 + 32 * 96 + 8 * 32 + 3 * 32
    every, active = (plan.format_count(rest + number * 3 * 32 * 32) for number in (8, 2))
    out = printed(capsys)[0]
    assert f"{every}/{active}" in out
    table = out.split("plan of recipe")[1]
    assert "…" not in table and max(map(len, table.splitlines())) <= 80  # nothing is cut off on a narrow terminal
