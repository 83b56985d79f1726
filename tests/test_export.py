"""`mengya export`: any checkpoint is a model directory one command later."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mengya.errors import UserError
from mengya.export import export
from mengya.model.native.config import ModelConfig, to_hf
from mengya.model.native.transformer import CausalLM
from mengya.train.checkpoint import Checkpoints

from .conftest import interrupt_after


@pytest.fixture
def unfinished(grown, mengya) -> Path:
    """A project whose second run, "half", was stopped after step 5 of pretraining."""
    assert mengya("run", "tiny.toml", "--out", "half", setup=interrupt_after(4)).code == 130
    return grown


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def check_error(result, *words) -> None:
    assert result.code == 2 and result.err.startswith("mengya: ") and result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err, result.err


def test_an_unfinished_training_and_its_checkpoints(unfinished, mengya):
    partial = unfinished / "half" / "pretrain.partial"
    result = mengya("export", "half/pretrain.partial", "models/newest")
    assert result.code == 0, result.err
    assert result.out.startswith("✓ models/newest: step-5, ")
    newest, finished = unfinished / "models" / "newest", unfinished / "run" / "pretrain"
    assert {path.name for path in newest.iterdir()} == {
        path.name for path in finished.iterdir() if path.name not in ("stage.json", "metrics.jsonl")
    } | {"README.md"}
    assert (newest / "tokenizer.json").read_bytes() == (finished / "tokenizer.json").read_bytes()
    config, wanted = (json.loads((d / "config.json").read_text()) for d in (newest, finished))
    assert config | {"eos_token_id": wanted["eos_token_id"]} == wanted
    held = load_file(partial / "checkpoints" / "step-5" / "rank-0.safetensors")
    found = weights(newest)
    assert found.keys() == weights(finished).keys()
    assert all(torch.equal(tensor, held[f"model.{name}"]) for name, tensor in found.items())
    assert mengya("chat", "models/newest", "--ask", "你好").code == 0

    assert mengya("export", partial / "checkpoints" / "best", "best", "--dtype", "bfloat16").code == 0
    assert {tensor.dtype for tensor in weights(unfinished / "best").values()} == {torch.bfloat16}
    assert json.loads((unfinished / "best" / "config.json").read_text())["dtype"] == "bfloat16"

    result = mengya("run", "tiny.toml", "--out", "half")  # which the export has not disturbed
    assert result.code == 0 and "going on after step 5" in result.out
    assert all(torch.equal(t, weights(unfinished / "half" / "pretrain")[n]) for n, t in weights(finished).items())


def test_damaged_checkpoints_are_passed_over_and_left(unfinished, mengya):
    checkpoints = unfinished / "half" / "pretrain.partial" / "checkpoints"
    file = checkpoints / "step-5" / "rank-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    result = mengya("export", "half/pretrain.partial", "out")
    assert result.code == 0 and "passing over a damaged checkpoint" in result.out and "out: step-4" in result.out
    assert file.exists()
    check_error(mengya("export", checkpoints / "step-5", "other"), "step-5 cannot be read", "delete it")
    (checkpoints / "step-4" / "checkpoint.json").unlink()
    check_error(mengya("export", "half/pretrain.partial", "other"), "has no whole checkpoint yet; let it train on")
    assert not list(unfinished.glob("*other*")) and not list(unfinished.glob(".*other*"))


def test_a_checkpoint_that_was_moved_has_no_tokenizer(unfinished, mengya):
    shutil.copytree(unfinished / "half" / "pretrain.partial" / "checkpoints" / "step-5", unfinished / "moved")
    result = mengya("export", "moved", "out")
    assert result.code == 0 and "exporting without" in result.out
    assert {path.name for path in (unfinished / "out").iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }


def test_a_model_in_another_type(grown, mengya):
    assert mengya("export", "run/dpo", "half", "--dtype", "bfloat16").code == 0
    wanted, found = weights(grown / "run" / "dpo"), weights(grown / "half")
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in wanted.items())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (grown / "half" / name).read_bytes() == (grown / "run" / "dpo" / name).read_bytes()
    config, before = (json.loads((d / "config.json").read_text()) for d in (grown / "half", grown / "run" / "dpo"))
    assert config == before | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    assert mengya("chat", "half", "--ask", "你好").code == 0
    assert mengya("export", "half", "again").code == 0
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights(grown / "again").items())


def test_what_cannot_be_exported(unfinished, mengya):
    (unfinished / "taken").mkdir()
    check_error(mengya("export", "run/pretrain", "taken"), "taken is there already; delete it or choose another name")
    check_error(mengya("export", "nowhere", "out"), "nowhere is not there; give a stage's directory")
    check_error(mengya("export", "run/corpus", "out"), "run/corpus is none of these")
    check_error(mengya("export", "run", "out"), "or a model directory, such as run/dpo")
    check_error(mengya("export", "half/pretrain", "out"), "half/pretrain.partial is unfinished: give that directory")
    check_error(mengya("export", "half", "out"), "half/pretrain.partial is unfinished: give that directory")
    assert "--dtype" in mengya("export", "run/pretrain", "out", "--dtype", "int3").err
    assert not (unfinished / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm.weight": None}, r"step-1 lacks 1 weights that were frozen \(model.norm.weight\)"),
        ({"norm.weight": torch.ones(9)}, "model.norm.weight do not fit the model; use the version of mengya"),
        ({"more": torch.ones(8)}, "model.more do not fit the model; use the version of mengya"),
    ],
)
def test_a_checkpoint_whose_tensors_are_not_the_models(tmp_path, change, words):
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes = ("hidden_size", "intermediate_size", "max_position_embeddings", "vocab_size")
    shape = ModelConfig(**heads, **dict.fromkeys(sizes, 8))
    state = {f"model.{name}": tensor for name, tensor in CausalLM(shape).state_dict().items() if "lm_head" not in name}
    state |= {f"model.model.{name}": tensor for name, tensor in change.items()}
    tensors = {name: tensor for name, tensor in state.items() if tensor is not None}
    config = to_hf(shape)
    Checkpoints(tmp_path, 1, config, asynchronous=False).save("step-1", 1, tensors, {})
    with pytest.raises(UserError, match=words):
        export(tmp_path / "step-1", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
