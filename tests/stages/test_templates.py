"""Chat templates in recipes: one of ours by name, else the model's own."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mengya.data.shards import Shards
from mengya.text.chat import Chat
from mengya.text.template import TEMPLATES

from ..conftest import TUNING, interrupt_after, write_jsonl

PLAIN = (
    "{% for m in messages %}{{ m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|endoftext|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}"
)
ADD_PLAIN = f"""
import mengya.text.template as module
module.TEMPLATES["plain"] = module.Template({PLAIN!r}, needs=("<|endoftext|>",))
"""
"""As an entry of the list does it; Python that a command runs first."""


def stored(directory: Path) -> str | None:
    return json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")


def from_elsewhere(grown: Path, stage: str, name: str) -> tuple[Path, dict]:
    """A copy of a stage's model, as if from elsewhere: the file that holds its chat template, and its content."""
    shutil.copytree(grown / "run" / stage, grown / name)
    (grown / name / "stage.json").unlink()
    path = grown / name / "tokenizer_config.json"
    return path, json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def base(grown) -> Path:
    """A base model as it comes from elsewhere, without a chat template; and a recipe that tunes it."""
    path, config = from_elsewhere(grown, "pretrain", "base")
    del config["chat_template"]
    path.write_text(json.dumps(config, indent=7), encoding="utf-8")
    tuning = TUNING.replace("[sft]", '[sft]\nmodel = "base"').split("[evaluate]")[0]
    (grown / "tune.toml").write_text(tuning, encoding="utf-8")
    return grown


def test_a_template_of_ours_is_one_entry_of_a_list(base, mengya):
    argv = ["run", "tune.toml", "sft.template=plain", "--out", "tuned"]
    result = mengya(*argv, setup=ADD_PLAIN)
    assert result.code == 0, result.err
    for stage in ("sft", "dpo"):  # what dpo does not name, it takes from its model
        assert stored(base / "tuned" / stage) == PLAIN
        chat = Chat.load(base / "tuned" / stage)
        assert chat.stop_ids == {chat.tokenizer.eos_id} | {chat.tokenizer.control_ids["<|im_end|>"]}
        stops = json.loads((base / "tuned" / stage / "generation_config.json").read_text())["eos_token_id"]
        assert stops == sorted(chat.stop_ids)
    messages = [{"role": "user", "content": "cat?"}, {"role": "assistant", "content": "mat"}]
    ids, mask = chat.encode(messages)
    assert chat.tokenizer._structure.decode(ids, skip_special_tokens=False) == (
        "user\ncat?\nassistant\nmat<|endoftext|>\n"
    )
    assert [i for i, m in zip(ids, mask, strict=True) if m] == [*chat.tokenizer.encode("mat"), chat.tokenizer.eos_id]
    peer = AutoTokenizer.from_pretrained(base / "tuned" / "dpo")
    assert peer.apply_chat_template(messages, return_dict=False) == ids
    assert mengya("chat", "tuned/dpo", "--ask", "你好").code == 0  # without the list: the directory says it all


def test_what_is_trained_on_is_the_rendering_of_the_template(base, mengya):
    partial = base / "tuned" / "sft.partial"
    stop = "import mengya.train.run as run\ndef stop(*_, **__): raise KeyboardInterrupt\nrun.prepare_model = stop\n"
    assert mengya("run", "tune.toml", "sft.template=plain", "--out", "tuned", setup=ADD_PLAIN + stop).code == 130
    shards = Shards(partial / "shards" / "train")
    chat = Chat.load(base / "base", "chatml")
    text = chat.tokenizer._structure.decode(shards.tokens[: shards.offsets[1]].tolist(), skip_special_tokens=False)
    assert text.startswith("user\n") and "?\nassistant\n" in text and text.endswith("<|endoftext|>\n")


def test_a_model_without_a_template_needs_one_of_ours(base, mengya):
    result = mengya("run", "tune.toml", "--out", "tuned")
    assert result.code == 2 and "base has no chat template" in result.err, result.err
    assert 'sft.template = "chatml"' in result.err and result.err.count("\n") == 2
    result = mengya("run", "tune.toml", "sft.template=chatml", "--until", "sft", "--out", "again")
    assert result.code == 0, result.err
    assert stored(base / "again" / "sft") == TEMPLATES["chatml"].source
    tokenizer = (base / "base" / "tokenizer.json").read_bytes()
    assert (base / "again" / "sft" / "tokenizer.json").read_bytes() == tokenizer


def test_an_unknown_template_is_refused_before_anything_runs(project, mengya):
    result = mengya("run", "whole.toml", "sft.template=alpaca", "--out", "run")
    assert result.code == 2 and "template='alpaca' is not one of ours; use one of chatml" in result.err, result.err
    assert not (project / "run").exists()


def test_an_unfinished_tuning_is_exported_with_its_template(base, mengya):
    argv = ["run", "tune.toml", "sft.template=plain", "sft.steps=6", "sft.checkpoint_every=1", "--out", "tuned"]
    assert mengya(*argv, setup=ADD_PLAIN + interrupt_after(3)).code == 130
    result = mengya("export", "tuned/sft.partial", "newest", setup=ADD_PLAIN)
    assert result.code == 0, result.err
    assert stored(base / "newest") == PLAIN


def test_rows_that_a_template_refuses_and_answers_without_an_end(base, mengya):
    """As gemma's template, which knows no system; as GLM's, where the next turn ends an answer."""
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    path = base / "base" / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"chat_template": refusing + PLAIN.replace("<|endoftext|>", "")}
    path.write_text(json.dumps(config), encoding="utf-8")
    with open(base / "conversations.jsonl", "a", encoding="utf-8") as file:
        file.write('{"system": "be kind", "prompt": "cat?", "response": "mat"}\n')
    result = mengya("run", "tune.toml", "--until", "sft", "--out", "tuned")
    assert result.code == 0, result.err
    (row,) = map(json.loads, (base / "tuned" / "sft" / "quarantine.jsonl").read_text().splitlines())
    assert "no system role" in row["reason"] and '"be kind"' in row["raw"] and row["line"] > 1
    assert "1 quarantined" in result.out and "the model will not learn to stop" in result.out
    usual = mengya("run", "tune.toml", "sft.template=chatml", "--until", "sft", "--out", "usual")
    assert usual.code == 0 and "learn to stop" not in usual.out


EVALUATE = """
[evaluate]
models = ["run/sft", "strict"]
corpus = "run/corpus"
preferences = "some.jsonl"
"""


@pytest.fixture
def strict(grown) -> Path:
    """Two models, of which one has a template without system messages; and pairs and questions for both."""
    path, config = from_elsewhere(grown, "sft", "strict")
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    config["chat_template"] = refusal + PLAIN
    path.write_text(json.dumps(config), encoding="utf-8")
    plain = {"prompt": [{"role": "user", "content": "cat?"}], "chosen": "mat", "rejected": "home"}
    system = plain | {"prompt": [{"role": "system", "content": "be brief"}, *plain["prompt"]]}
    write_jsonl(grown / "some.jsonl", [plain, system, plain])
    write_jsonl(grown / "none.jsonl", [system])
    (grown / "measure.toml").write_text(EVALUATE, encoding="utf-8")
    return grown


def test_a_pair_that_one_template_refuses_is_put_aside_for_all_models(strict, mengya):
    result = mengya("run", "measure.toml", "--out", "measured")
    assert result.code == 0 and "1 quarantined in quarantine.jsonl" in result.out, result.err
    (row,) = map(json.loads, (strict / "measured/evaluate/quarantine.jsonl").read_text().splitlines())
    assert row["line"] == 2 and "no system messages" in row["reason"]
    report = json.loads((strict / "measured/evaluate/report.json").read_text())
    counts = [stage["intervals"]["preference_accuracy"]["total"] for stage in report["stages"].values()]
    assert counts == [2, 2]
    none = mengya("run", "measure.toml", "evaluate.preferences=none.jsonl", "--out", "none")
    assert none.code == 2 and "evaluate.preferences has no usable pair" in none.err
