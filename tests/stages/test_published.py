"""The recipes of published systems that begin with somebody's model, run with a tiny random one of its architecture."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from mengya.cli import main
from mengya.metrics import read_jsonl
from mengya.model.load import load_model
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM
from mengya.text.chat import Chat
from mengya.text.tokenizer import CONFIG, Tokenizer, as_json, json_object, train_tokenizer

from .. import remote_code
from .conftest import write_animals

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = ("seq_len=64", "batch_tokens=256", "micro_batch=2", "steps=4", "heldout_every=2", "checkpoint_every=2")
SMALL += ("compile=false", 'dtype="float32"', "optim.lr=1e-2", "optim.warmup=0", "epochs=1.0")
SHAPES = {
    "mistral": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    | dict(intermediate_size=48, max_position_embeddings=256, sliding_window=None, tie_word_embeddings=False),
    "llama": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
    | dict(intermediate_size=48, max_position_embeddings=256, tie_word_embeddings=False),
}
MIXTURE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, intermediate_size=48)
MIXTURE |= dict(max_position_embeddings=256, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
MIXTURE |= dict(n_shared_experts=2, first_k_dense_replace=1, norm_topk_prob=False, tie_word_embeddings=False)


@pytest.fixture
def data(tmp_path):
    """The files, and a tokenizer of 300 entries."""
    write_animals(tmp_path)
    texts = [json.loads(line)["text"] for line in (tmp_path / "text.jsonl").open(encoding="utf-8")]
    return tmp_path, Chat(train_tokenizer(texts, 300, 16), "chatml").tokenizer


def model_of(kind: str, folder: Path, tokenizer: Tokenizer) -> Path:
    base = folder / kind
    if kind in remote_code.SHAPES:
        remote_code.write(kind, base, 300)
    elif kind == "mixture":
        model = CausalLM(ModelConfig(vocab_size=300, **MIXTURE))
        model.initialize(torch.Generator().manual_seed(0))
        model.save(base)
    else:
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=300, **SHAPES[kind])
        AutoModelForCausalLM.from_config(config).float().save_pretrained(base)
    tokenizer.save(base)
    return base


def run(name: str, folder: Path, stages: tuple[str, ...], *overrides: str) -> Path:
    """The directory of the run."""
    small = [f"{stage}.{key}" for stage in stages for key in SMALL]
    arguments = [str(RECIPES / name), *small, *overrides, "--out", str(folder / "run")]
    assert main(["plan", *arguments]) == 0
    assert main(["run", *arguments]) == 0
    for stage in stages:
        rows = list(read_jsonl(folder / "run" / stage / "metrics.jsonl"))
        assert rows[-1]["step"] == 4 and rows[-1]["loss"] < rows[0]["loss"]
    return folder / "run"


def path(value: Path) -> str:
    return json.dumps(str(value))


def test_baichuan_goes_on_in_4_bits(data, capsys):
    """In one process; the test below runs the recipe as it is, in two."""
    folder, tokenizer = data
    base = model_of("baichuan", folder, tokenizer)
    overrides = (f"corpus.path={path(folder / 'text.jsonl')}", f"tokenize.tokenizer={path(base)}")
    overrides += (f"pretrain.init={path(base)}", 'pretrain.parallel="auto"', 'pretrain.deepspeed=""')
    found = run("baichuan/13b-qlora.toml", folder, ("pretrain",), *overrides, "evaluate.heldout_bytes=2000")
    told = capsys.readouterr().out
    assert "running the code that comes with" in told and "pretrain on GPUs, about" in told
    config = json.loads((found / "pretrain" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == {"W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert (found / "merge" / "modeling_baichuan.py").is_file() and (found / "evaluate" / "report.json").is_file()
    merged = load_model(found / "merge", trust_remote_code=True)
    assert merged.weights()["model.layers.0.self_attn.W_pack.weight"].shape == (96, 32)


def test_baichuan_goes_on_in_4_bits_with_deepspeed(data, launch_ranks):
    pytest.importorskip("deepspeed", reason="pip install 'mengya[deepspeed]'")
    folder, tokenizer = data
    base = model_of("baichuan", folder, tokenizer)
    keys = [f"pretrain.{key}" for key in SMALL if key.split("=")[0] not in ("dtype", "epochs")]
    keys += [f"corpus.path={path(folder / 'text.jsonl')}", f"tokenize.tokenizer={path(base)}"]
    keys += [f"pretrain.init={path(base)}", "pretrain.micro_batch=1", "evaluate.heldout_bytes=2000"]
    recipe = RECIPES / "baichuan" / "13b-qlora.toml"
    ended = launch_ranks("run", recipe, *keys, "--out", folder / "run", cwd=RECIPES.parent).wait()
    assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)
    rows = list(read_jsonl(folder / "run" / "pretrain" / "metrics.jsonl"))
    assert rows[-1]["step"] == 4 and rows[-1]["loss"] < rows[0]["loss"]
    assert (folder / "run" / "pretrain" / "adapter_model.safetensors").is_file()
    assert (folder / "run" / "evaluate" / "report.json").is_file()


def test_the_first_qwen_is_tuned_in_4_bits(data):
    folder, tokenizer = data
    base = model_of("qwen", folder, tokenizer)
    overrides = (f"sft.model={path(base)}", f"sft.path={path(folder / 'talks.jsonl')}")
    found = run("qwen/14b-chat-qlora.toml", folder, ("sft",), *overrides)
    config = json.loads((found / "sft" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == {"c_attn", "c_proj", "w1", "w2"}
    assert main(["chat", str(found / "merge"), "--trust-remote-code", "--ask", "猫吃什么？"]) == 0
    assert main(["chat", str(found / "merge"), "--ask", "猫吃什么？"]) == 2


def test_the_first_qwen_is_tuned_whole(data):
    folder, tokenizer = data
    base = model_of("qwen", folder, tokenizer)
    before = load_file(base / "model.safetensors")
    overrides = (f"sft.model={path(base)}", f"sft.path={path(folder / 'talks.jsonl')}")
    found = load_file(run("qwen/1.8b.toml", folder, ("sft",), *overrides) / "sft" / "model.safetensors")
    assert found.keys() == before.keys() and not any(torch.equal(found[name], before[name]) for name in found)


def test_mistral_with_a_grown_vocabulary(data):
    folder, tokenizer = data
    base = model_of("mistral", folder, tokenizer)
    overrides = (f"corpus.path={path(folder / 'text.jsonl')}", f"tokenizer.extend={path(base)}")
    overrides += ("tokenizer.vocab_size=340", f"pretrain.init={path(base)}", f"sft.path={path(folder / 'talks.jsonl')}")
    found = run("mistral/7b-grown-qlora.toml", folder, ("pretrain", "sft"), *overrides, "evaluate.heldout_bytes=2000")
    merged, plain = load_file(found / "merge" / "model.safetensors"), load_file(base / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert len(merged[name]) == 340 and not torch.equal(merged[name][:300].float(), plain[name])
    theirs = AutoModelForCausalLM.from_pretrained(found / "merge")
    assert theirs.config.vocab_size == 340 and theirs.config.tie_word_embeddings is False


@pytest.mark.parametrize(("name", "kind"), [("ndl/0.8b-lora.toml", "llama"), ("ndl/1.3b-moe-lora.toml", "mixture")])
def test_ndl_with_an_adapter(data, name, kind):
    folder, tokenizer = data
    base = model_of(kind, folder, tokenizer)
    overrides = (f"sft.model={path(base)}", f"sft.path={path(folder / 'talks.jsonl')}")
    found = run(name, folder, ("sft",), *overrides)
    before, after = (load_file(where / "model.safetensors") for where in (base, found / "merge"))
    changed = {n for n in after if not torch.equal(after[n], before[n])}
    assert after.keys() == before.keys() and changed == {n for n in after if "_proj.weight" in n}
    assert kind == "llama" or any(".experts." in name for name in changed)


def test_two_columns_with_a_frozen_embedding(data):
    folder, tokenizer = data
    config = json_object(tokenizer.files, CONFIG) | {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    base = model_of("llama", folder, Tokenizer(tokenizer.files | {CONFIG: as_json(config)}))
    rows = [json.loads(line) for line in (folder / "talks.jsonl").open(encoding="utf-8")]
    columns = {"prompt": [row["instruction"] for row in rows], "response": [row["output"] for row in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "pairs.parquet")
    overrides = (f"sft.model={path(base)}", f"sft.path={path(folder / 'pairs.parquet')}")
    found = run("tiny-llama2/24m-sft.toml", folder, ("sft",), *overrides)
    before, after = (load_file(where / "model.safetensors") for where in (base, found / "sft"))
    assert {n for n in after if torch.equal(after[n], before[n])} == {"model.embed_tokens.weight"}
    ids, mask = Chat.load(found / "sft").encode(
        [{"role": "user", "content": "猫吃什么？"}, {"role": "assistant", "content": "鱼"}]
    )
    own = Tokenizer.load(base)
    bos, eos = own.control_ids["<|im_start|>"], own.control_ids["<|im_end|>"]
    assert ids == [*own.encode("猫吃什么？"), bos, *own.encode("鱼"), eos] and sum(mask) == len(own.encode("鱼")) + 1


def test_every_recipe_of_somebodys_model_is_here():
    tested = Path(__file__).read_text(encoding="utf-8")
    for recipe in RECIPES.glob("*/*.toml"):
        content = recipe.read_text(encoding="utf-8")
        name = recipe.relative_to(RECIPES).as_posix()
        assert name in tested or "[pretrain.model]" in content or "base =" in content, name
