"""The model card of an export, and the gate: other engines compute what was written, or nothing is left."""

import json
import shutil

import pytest
import torch

from mengya.errors import UserError
from mengya.export import card, export, gate
from mengya.export.sources import Found, find
from mengya.model.load import load_model


def front_of(text: str) -> list[str]:
    assert text.startswith("---\n")
    return text.split("---\n")[1].splitlines()


def test_the_card_of_a_stage_says_where_it_came_from(grown, mengya):
    result = mengya("export", "run/dpo", "out", "--license", "cc-by-nc-4.0")
    assert result.code == 0, result.err
    assert "checked by transformers" in result.out and "8 conversations are the same" in result.out
    assert "not checked by vLLM" in result.out
    text = (grown / "out" / "README.md").read_text(encoding="utf-8")
    wanted = "license: cc-by-nc-4.0|language:|- zh|- en|library_name: transformers|pipeline_tag: text-generation"
    assert front_of(text) == [*wanted.split("|"), "tags:", "- mengya"]
    own = json.loads((grown / "run" / "dpo" / "stage.json").read_text())["fingerprint"]
    for word in ("| corpus |", "text.jsonl (", f"| dpo | {own[:8]} | sft (", "| hidden_size | 32 |", "steps=2"):
        assert word in text, word
    assert "## Measured on held-out data" in text and "| bits_per_byte | " in text
    assert str(grown) not in text and "/" not in text.split("## Data")[1].split("## Measured")[0]


def test_figures_of_another_model_of_that_name_are_not_taken(grown, tmp_path):
    shutil.copytree(grown / "run", tmp_path / "other")
    manifest = tmp_path / "other" / "dpo" / "stage.json"
    content = json.loads(manifest.read_text()) | {"fingerprint": "0123456789abcdef"}
    manifest.write_text(json.dumps(content))
    export(tmp_path / "other" / "dpo", tmp_path / "out", None)
    assert "Measured" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_model_that_came_from_a_hub_names_its_base(grown, tmp_path):
    manifest = grown / "run" / "pretrain" / "stage.json"
    content = json.loads(manifest.read_text())
    content["inputs"].append({"field": "init", "path": "hf:sprout/tiny@v1", "artifact": False, "fingerprint": "00"})
    manifest.write_text(json.dumps(content))
    links, base = card.lineage(grown / "run" / "sft")
    assert base == "sprout/tiny" and [link["stage"] for link in links][-1] == "sft"
    card.write(find(grown / "run" / "sft", None, False), grown / "run" / "sft", tmp_path, "mine", None, None)
    front = front_of((tmp_path / "README.md").read_text(encoding="utf-8"))
    assert "base_model: sprout/tiny" in front and "license: unknown" in front


@pytest.mark.parametrize("license", ["mit", "no", "1.0", "true", "a: b", '许可 "x"', "apache-2.0", None])
def test_the_front_is_yaml(grown, tmp_path, license):
    """As the hubs check it before they take a push."""
    yaml = pytest.importorskip("yaml")
    source = grown / "run" / "sft"
    card.write(find(source, None, False), source, tmp_path, "mine", None, license)
    front = yaml.safe_load("\n".join(front_of((tmp_path / "README.md").read_text(encoding="utf-8"))))
    assert front["license"] == (license or "unknown") and front["language"] == ["zh", "en"]
    assert front["tags"] == ["mengya"] and "base_model" not in front


def test_a_card_that_is_there_is_kept(grown, tmp_path):
    (grown / "run" / "sft" / "README.md").write_text("# mine\n")
    export(grown / "run" / "sft", tmp_path / "out", None)
    assert (tmp_path / "out" / "README.md").read_text() == "# mine\n"


def test_an_unfinished_training_is_called_so(grown, tmp_path):
    run = grown / "run" / "half.partial"
    shutil.copytree(grown / "run" / "sft", run)
    note = json.loads((run / "stage.json").read_text())
    (run / "stage.json").unlink()
    (run / "unfinished.json").write_text(json.dumps({key: note[key] for key in ("stage", "config", "inputs")}))
    links, _ = card.lineage(run)
    assert links[-1]["unfinished"] and [link["stage"] for link in links[:2]] == ["corpus", "tokenizer"]


@pytest.mark.parametrize("what", ["shape", "weights", "template", "vocabulary"])
def test_what_transformers_reads_otherwise_is_not_left(everything, tmp_path, monkeypatch, what):
    save = Found.save

    def changed(found, out, dtype):
        save(found, out, dtype)
        if what == "shape":
            config = json.loads((out / "config.json").read_text())
            config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 77.0
            (out / "config.json").write_text(json.dumps(config))
        elif what == "weights":
            from safetensors.torch import load_file, save_file

            state = load_file(out / "model.safetensors")
            state["model.norm.weight"] *= 1.001
            save_file(state, out / "model.safetensors", metadata={"format": "pt"})
        elif what == "template":
            config = json.loads((out / "tokenizer_config.json").read_text())
            config["chat_template"] = config["chat_template"].replace("'\\n'", "'\\n\\n'")
            (out / "tokenizer_config.json").write_text(json.dumps(config))
        else:
            content = json.loads((out / "tokenizer.json").read_text())
            vocabulary = content["model"]["vocab"]
            vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
            (out / "tokenizer.json").write_text(json.dumps(content))

    monkeypatch.setattr(Found, "save", changed)
    words = {
        "shape": "reads back with another rope_theta",
        "weights": "reads back with another model.norm.weight",
        "template": "transformers .* writes the conversation",
        "vocabulary": "transformers .* reads .* as other tokens",
    }[what]
    with pytest.raises(UserError, match=words):
        export(everything, tmp_path / "out", None)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_what_transformers_computes_otherwise(everything, tiny_model):
    """Of the same files, as if an engine had a fault."""
    model = load_model(everything)
    with torch.no_grad():
        model.weights()["model.norm.weight"][0] *= 2
    with pytest.raises(UserError, match=r"transformers .* computes another model from"):
        gate.with_transformers(everything, model, None, False)


def test_transformers_composes_text_for_every_qwen2(tiny_model, tokenizer, tmp_path):
    """It has a class of its own for that family, whatever the directory says; text in the form NFC is the same."""
    tiny_model(qkv_bias=True).save(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    told, _ = gate.with_transformers(tmp_path / "model", load_model(tmp_path / "model"), tokenizer, False)
    assert "text comes into Unicode's form NFC first" in told and "8 conversations are the same" in told


def test_an_engine_that_fails_says_why(everything, tmp_path):
    """Here one that is not installed in the Python that was found."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'GGML_ASSERT(n_rot) failed' >&2\nexit 134\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match=r"llama_cpp does not load x.gguf \(GGML_ASSERT\(n_rot\) failed\)"):
        gate.compare("llama_cpp", tmp_path / "x.gguf", load_model(everything), None, [], str(python), 1.0)


def test_a_folder_with_the_name_of_an_engine_is_none(tmp_path, monkeypatch):
    (tmp_path / "no_such_engine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert gate.python_of("no_such_engine", []) is None


def test_numbers_that_are_not_finite_are_no_small_difference():
    assert not gate.difference([[0.0]], [[float("nan")]])[0] <= 1.0
    assert not gate.difference([[0.0]], [[float("-inf")]])[0] <= 1.0
    assert gate.difference([[0.0, 1.0]], [[0.5, 1.0]]) == (0.25, 0.5)
