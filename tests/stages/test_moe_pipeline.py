"""The small sister of the published mixture of experts goes through the real stages, and comes out whole."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mengya.cli import main
from mengya.infer.backends.local import Local
from mengya.infer.dialogue import Dialogue
from mengya.infer.engine import Engine
from mengya.infer.generate import generate
from mengya.infer.request import Request, Sampling
from mengya.model.load import load_model
from mengya.text.chat import Chat
from mengya.toml_tables import read_tables
from mengya.train import checkpoint
from mengya.train import run as training

from .conftest import three_trainings, write_animals

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart-moe.toml"
SHAPE = read_tables(RECIPE)["pretrain"]["model"]
SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}
SMALL |= {"intermediate_size": 96, "moe_intermediate_size": 16, "max_position_embeddings": 128}
STEPS = 40
TRAINING = f"""seq_len = 64
batch_tokens = 512
micro_batch = 4
steps = {STEPS}
heldout_every = 20
checkpoint_every = 10
compile = false
optim.lr = 5e-3
balance.bias_update_rate = 0.002
"""


def run(root: Path, *overrides: str, out: str = "out") -> int:
    return main(["run", str(root / "recipe.toml"), *overrides, "--out", str(root / out)])


def rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished run of pretraining, tuning on conversations and on preferences."""
    root = tmp_path_factory.mktemp("moe")
    write_animals(root)
    shape = "".join(f"{key} = {json.dumps(value)}\n" for key, value in (SHAPE | SMALL).items())
    recipe = three_trainings(*(root / f"{name}.jsonl" for name in ("text", "talks", "pairs")), TRAINING, shape)
    (root / "recipe.toml").write_text(recipe, encoding="utf-8")
    assert run(root) == 0
    return root


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_the_loss_falls_and_the_load_is_told(root, stage):
    found = rows(root / "out" / stage)
    assert len(found) == STEPS
    assert found[-1]["loss"] < 0.7 * found[0]["loss"]
    for row in found:
        load = torch.tensor(row["expert_load"])
        assert load.shape == (SMALL["num_hidden_layers"] - 1, SHAPE["num_experts"])
        assert load.sum(1).unique().numel() == 1 and 0 < load[0].sum() <= SHAPE["num_experts_per_tok"] * 512
        assert 0.9 < row["balance_loss"] < 4 and row["router_z_loss"] > 0


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_transformers_loads_it_with_the_same_logits(root, stage):
    out = root / "out" / stage
    ours, peer = load_model(out), AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert peer.config.model_type == "ernie4_5_moe"
    biases = [b for name, b in ours.named_buffers() if name.endswith("e_score_correction_bias")]
    assert all(bias.any() for bias in biases) and len(biases) == 2  # they were learnt, and are in the file
    ids = torch.randint(0, 330, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (ours(ids) - peer(ids).logits).abs().max() < 1e-4


def test_it_answers(root):
    out = root / "out" / "sft"
    model, chat = load_model(out), Chat.load(out)
    question = {"role": "user", "content": "7：熊猫吃什么？"}
    prompt, _ = chat.encode([question], add_generation_prompt=True)
    greedy = Sampling(temperature=0.0, max_new_tokens=12)
    engine = Engine(model, chat.tokenizer, chat.stop_ids)
    requests = [Request(prompt=ids, sampling=greedy) for ids in (prompt, prompt[:-1], prompt)]
    [[alone]] = generate(engine, requests[:1])
    batched = generate(engine, requests)
    assert batched[0] == batched[2] == [alone]
    with contextlib.closing(Local("sprout", model, chat.tokenizer, chat)) as backend:
        assert "".join(Dialogue(backend, greedy).stream(question["content"])) == alone.text != ""


def test_a_stopped_run_goes_on_to_the_same_bits(root, monkeypatch):
    fresh = root / "again"
    for stage in ("corpus", "tokenizer", "tokenize"):
        shutil.copytree(root / "out" / stage, fresh / stage)

    class Stop(Exception):
        pass

    save = checkpoint.Checkpoints.save

    def stop_after_20(self, name, step, *rest, **named):
        save(self, name, step, *rest, **named)
        if name == "step-20":
            self.wait()
            raise Stop

    monkeypatch.setattr(training.Checkpoints, "save", stop_after_20)
    with pytest.raises(Stop):
        run(root, "--until", "pretrain", out="again")
    monkeypatch.undo()
    assert run(root, "--until", "pretrain", out="again") == 0
    drop = {"tokens_per_second"}
    first, second = ([{k: v for k, v in row.items() if k not in drop} for row in rows(root / o / "pretrain")]
                     for o in ("out", "again"))  # fmt: skip
    assert first == second
    states = [load_model(root / out / "pretrain").state_dict() for out in ("out", "again")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_unnormalised_routing_trains_and_is_written_as_qwen2_moe(root):
    for stage in ("corpus", "tokenizer", "tokenize"):
        shutil.copytree(root / "out" / stage, root / "qwen" / stage)
    plain = ["pretrain.model.norm_topk_prob=false", "pretrain.balance.bias_update_rate=0", "pretrain.steps=20"]
    assert run(root, *plain, "--until", "pretrain", out="qwen") == 0
    out = root / "qwen" / "pretrain"
    assert rows(out)[-1]["loss"] < 0.9 * rows(out)[0]["loss"]
    ours, peer = load_model(out), AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert peer.config.model_type == "qwen2_moe"
    ids = torch.randint(0, 330, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (ours(ids) - peer(ids).logits).abs().max() < 1e-4


def test_a_bias_that_cannot_be_written_is_refused_before_anything_runs(root, capsys):
    assert run(root, "pretrain.model.norm_topk_prob=false", out="refused") == 2
    assert "balance.bias_update_rate=0.002 needs norm_topk_prob=true" in capsys.readouterr().err
    assert not (root / "refused").exists()
