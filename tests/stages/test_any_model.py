"""Models that only the transformers library has, and adapters, on the same stages: trained, killed, merged, asked."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from mengya.cli import main
from mengya.metrics import MetricsLog, format_count, read_jsonl
from mengya.model.load import load_model
from mengya.text.tokenizer import Tokenizer, train_tokenizer
from mengya.train.checkpoint import read_weights

from .conftest import write_animals

TRAINING = """seq_len = 64
batch_tokens = 256
micro_batch = 2
steps = 10
heldout_every = 5
checkpoint_every = 4
compile = false
dtype = "float32"
optim.lr = 1e-2
"""
SHAPES = {
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "qwen2": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    | dict(intermediate_size=48, max_position_embeddings=256, tie_word_embeddings=True),
}
LORA = "lora.r = 4\n"


@pytest.fixture
def root(tmp_path):
    """Conversations, pairs, a question, and a random model of each shape with a tokenizer."""
    write_animals(tmp_path)
    texts = [json.loads(line)["text"] for line in (tmp_path / "text.jsonl").open(encoding="utf-8")]
    tokenizer = train_tokenizer(texts, 300, 16)
    question = {"kind": "fact", "id": "f", "prompt": "猫吃什么？", "answer": "鱼", "accept": ["鱼"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, shape in SHAPES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, vocab_size=300, **shape)).float()
        model.save_pretrained(tmp_path / name)
        tokenizer.save(tmp_path / name)
    return tmp_path


def write_recipe(root, base, lora):
    path = {
        name: json.dumps(str(root / name))
        for name in (base, "talks.jsonl", "pairs.jsonl", "questions.jsonl", "text.jsonl")
    }
    merged = '[merge]\nmodel = "@dpo"\n' if lora else ""
    (root / "recipe.toml").write_text(
        f"""[corpus]
path = {path["text.jsonl"]}
[sft]
model = {path[base]}
path = {path["talks.jsonl"]}
heldout = 0.1
template = "chatml"
{LORA if lora else ""}{TRAINING}
[dpo]
path = {path["pairs.jsonl"]}
heldout = 0.1
{TRAINING}
{merged}[evaluate]
models = ["@sft", "@{"merge" if lora else "dpo"}"]
corpus = "@corpus"
questions = {path["questions.jsonl"]}
heldout_bytes = 1000
""",
        encoding="utf-8",
    )


def run(root, out, *arguments):
    return main(["run", str(root / "recipe.toml"), "--out", str(root / out), *arguments])


def crash(monkeypatch, root, out, stage):
    """Run until something breaks in the sixth step of a stage."""
    write = MetricsLog.write

    def broken(log, row):
        if row["step"] == 6:
            raise InterruptedError
        write(log, row)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", broken)
        with pytest.raises(InterruptedError):
            run(root, out, "--until", stage)


def rows(directory):
    return [
        {k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_jsonl(directory / "metrics.jsonl")
    ]


def weights(directory, lora):
    return load_file(directory / ("adapter_model.safetensors" if lora else "model.safetensors"))


@pytest.mark.parametrize(("base", "lora"), [("gpt2", False), ("gpt2", True), ("qwen2", True)])
def test_it_is_trained_goes_on_after_a_crash_and_answers(root, monkeypatch, capsys, base, lora):
    write_recipe(root, base, lora)
    assert run(root, "whole") == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    name = {"gpt2": "GPT2LMHeadModel, transformers", "qwen2": "Qwen2ForCausalLM, native"}[base]
    assert shown.count(f"going on from {base}: {name}") == 1
    whole = root / "whole"
    for stage in ("sft", "dpo"):
        found = rows(whole / stage)
        assert found[-1]["loss"] < found[0]["loss"] and "heldout_loss" in found[-1]
        assert (whole / stage / "config.json").exists() != lora
    report = json.loads((whole / "evaluate" / "report.json").read_text())
    assert set(report["stages"]) == {"sft", "merge" if lora else "dpo"}

    shutil.copytree(whole / "corpus", root / "again" / "corpus")
    for stage in ("sft", "dpo"):
        crash(monkeypatch, root, "again", stage)
        unfinished = root / "again" / f"{stage}.partial"
        assert main(["export", str(unfinished), str(root / f"exported-{stage}")]) == 0
        assert load_model(root / f"exported-{stage}").adapter is None  # merged
        checkpoint = unfinished / "checkpoints" / "step-4"
        trained = read_weights(checkpoint)
        if lora:  # the adapter's weights and their two moments, and nothing of the model but its config.json
            assert all(".lora_" in name for name in trained)
            held = [tensor for path in checkpoint.glob("*.safetensors") for tensor in load_file(path).values()]
            assert sum(t.nbytes for t in held) < 3 * sum(t.nbytes for t in trained.values()) + 10_000  # random states
        capsys.readouterr()
        assert run(root, "again", "--until", stage) == 0
        shown, count = capsys.readouterr().out, sum(tensor.numel() for tensor in trained.values())
        assert f"{name}{', with an adapter of rank 4' if lora else ''}\n" in shown
        assert f"going on after step 4 with {format_count(count)} trained weights and their optimizer" in shown
        assert rows(root / "again" / stage) == rows(whole / stage)
        found, undisturbed = (weights(root / out / stage, lora) for out in ("again", "whole"))
        assert found.keys() == undisturbed.keys() and all(torch.equal(found[n], undisturbed[n]) for n in found)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_model_that_changed_while_its_adapter_was_trained_is_refused(root, monkeypatch, capsys, file):
    write_recipe(root, "qwen2", True)
    path = root / "qwen2" / file
    content = path.read_bytes()
    changed = content.replace(b"1e-06", b"1e-05") if file == "config.json" else content[:-1] + b"@"
    assert changed != content
    crash(monkeypatch, root, "out", "sft")
    path.write_bytes(changed)
    assert run(root, "out", "--until", "sft") == 2
    shown = capsys.readouterr().err
    assert "holds an unfinished result of 'sft' made with other settings: the input model" in shown
    assert "has another content" in shown and "Traceback" not in shown
    path.write_bytes(content)
    assert run(root, "out", "--until", "sft") == 0
    crash(monkeypatch, root, "out", "dpo")
    path.write_bytes(changed)
    assert run(root, "out", "--until", "dpo") == 2
    assert "the input model" in (shown := capsys.readouterr().err) and "Traceback" not in shown
    assert (root / "out" / "dpo.partial" / "checkpoints" / "step-4").is_dir(), "nothing is lost"
    path.write_bytes(content)
    assert run(root, "out", "--until", "dpo") == 0
    assert "going on after step 4" in capsys.readouterr().out


def test_export_merges_an_adapter(root, capsys):
    write_recipe(root, "qwen2", True)
    assert run(root, "whole", "--until", "merge") == 0, capsys.readouterr().err
    assert main(["export", str(root / "whole" / "dpo"), str(root / "exported")]) == 0
    ours, theirs = (load_file(p / "model.safetensors") for p in (root / "exported", root / "whole" / "merge"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    config = json.loads((root / "exported" / "config.json").read_text())
    stop = Tokenizer.load(root / "exported").control_ids["<|im_end|>"]
    assert config["model_type"] == "qwen2" and stop in config["eos_token_id"]


def test_a_second_adapter_needs_a_merge_first(root, capsys):
    write_recipe(root, "qwen2", True)
    assert run(root, "whole", "--until", "sft") == 0
    assert run(root, "whole", "dpo.lora.r=4", "--until", "dpo") == 2
    assert "has an adapter already; leave out the table lora" in capsys.readouterr().err


def test_pretraining_goes_on_with_an_adapter(root, capsys):
    (root / "recipe.toml").write_text(
        f"""[corpus]
path = {json.dumps(str(root / "text.jsonl"))}
heldout = 0.1
[tokenize]
tokenizer = {json.dumps(str(root / "gpt2"))}
[pretrain]
init = {json.dumps(str(root / "gpt2"))}
{LORA}{TRAINING}
[merge]
model = "@pretrain"
""",
        encoding="utf-8",
    )
    assert run(root, "whole") == 0, capsys.readouterr().err
    found = rows(root / "whole" / "pretrain")
    assert found[-1]["heldout_bits_per_byte"] < found[0].get("heldout_bits_per_byte", 99)
    assert load_model(root / "whole" / "merge").adapter is None
    assert main(["run", str(root / "recipe.toml"), "--out", str(root / "x"), 'pretrain.init=""']) == 2


@pytest.mark.parametrize("base", ["gpt2", "qwen2"])
def test_a_plan_counts_the_adapter(root, capsys, base):
    write_recipe(root, base, True)
    assert main(["plan", str(root / "recipe.toml")]) == 0, capsys.readouterr().err
    assert "sft" in capsys.readouterr().out
