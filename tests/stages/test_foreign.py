"""A model of somebody else's, in plain PyTorch with names of its own: one class and one entry of a list, and the same
stages train it, go on after a crash, score it and save it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mengya.cli import main
from mengya.evaluate.bits import bits_per_byte
from mengya.metrics import MetricsLog, read_jsonl
from mengya.model import load
from mengya.model.language_model import LanguageModel
from mengya.model.load import load_model
from mengya.text.tokenizer import Tokenizer

from .conftest import write_animals


class Foreign(LanguageModel):
    """A few causal averages with a residual each."""

    def __init__(self, entries, longest, width, depth):
        super().__init__()
        self.shape = {"entries": entries, "longest": longest, "width": width, "depth": depth}
        self.wte = nn.Embedding(entries, width)
        self.wpe = nn.Embedding(longest, width)
        self.mixers = nn.ModuleList(nn.Sequential(nn.Linear(2 * width, width), nn.Tanh()) for _ in range(depth))
        self.out = nn.Parameter(torch.randn(entries, width) * 0.1)

    @classmethod
    def empty(cls, content, source, dtype, device):
        return cls(**content["shape"]).to(device=device, dtype=dtype)

    def description(self):
        return {"model_type": "foreign", "shape": self.shape}

    @property
    def vocab_size(self):
        return self.shape["entries"]

    @property
    def context(self):
        return self.shape["longest"]

    @property
    def output_weight(self):
        return self.out

    def blocks(self):
        return list(self.mixers)

    def hidden(self, *, input_ids, position_ids=None, starts=None):
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        position_ids = columns.expand_as(input_ids) if position_ids is None else position_ids
        starts = torch.zeros_like(input_ids) if starts is None else starts
        x = self.wte(input_ids) + self.wpe(position_ids)
        seen = ((columns <= columns[:, None]) & (columns >= starts[..., None])).to(x.dtype)  # (B, T, T)
        for mixer in self.mixers:
            x = x + mixer(torch.cat([x, seen @ x / seen.sum(-1, keepdim=True)], -1))
        return x, []


@pytest.fixture(autouse=True)
def entry(monkeypatch):
    """The one entry of the list."""
    monkeypatch.setitem(load.IMPLEMENTATIONS, "foreign", lambda: Foreign)


TRAINING = """seq_len = 64
batch_tokens = 256
micro_batch = 2
steps = 12
heldout_every = 6
checkpoint_every = 4
compile = false
dtype = "float32"
optim.lr = 1e-2
"""


@pytest.fixture
def root(tmp_path):
    """Inputs, a recipe, and a foreign model with random weights for the recipe's tokenizer."""
    write_animals(tmp_path)
    recipe = f"""
[corpus]
path = {json.dumps(str(tmp_path / "text.jsonl"))}
heldout = 0.1
[tokenizer]
vocab_size = 300
[tokenize]
[pretrain]
init = {json.dumps(str(tmp_path / "foreign"))}
{TRAINING}
[sft]
path = {json.dumps(str(tmp_path / "talks.jsonl"))}
heldout = 0.1
freeze = ["wpe*"]
{TRAINING}
[evaluate]
models = ["@pretrain", "@sft"]
heldout_bytes = 1000
"""
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    torch.manual_seed(0)
    Foreign(300, 64, 16, 2).save(tmp_path / "foreign")
    return tmp_path


def run(root, out, *arguments):
    return main(["run", str(root / "recipe.toml"), "--out", str(root / out), *arguments])


def rows(directory):
    return [
        {k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_jsonl(directory / "metrics.jsonl")
    ]


def test_the_same_stages_train_it_go_on_score_it_and_save_it(root, monkeypatch):
    assert run(root, "whole") == 0
    whole = root / "whole"
    for stage in ("pretrain", "sft"):
        found = rows(whole / stage)
        assert found[-1]["loss"] < 0.9 * found[0]["loss"] and "heldout_loss" in found[-1]
        assert json.loads((whole / stage / "config.json").read_text())["model_type"] == "foreign"
    before, tuned = (load_file(whole / stage / "model.safetensors") for stage in ("pretrain", "sft"))
    assert before.keys() == tuned.keys() == Foreign(300, 64, 16, 2).state_dict().keys()
    assert {name for name in before if torch.equal(before[name], tuned[name])} == {"wpe.weight"}
    report = json.loads((whole / "evaluate" / "report.json").read_text())
    model, tokenizer = load_model(whole / "sft"), Tokenizer.load(whole / "sft")
    assert isinstance(model, Foreign)
    texts = [json.loads(line)["text"] for line in (whole / "corpus" / "heldout.jsonl").open(encoding="utf-8")]
    alone = bits_per_byte(
        model,
        tokenizer,
        texts,
    ).value
    assert 0.9 < report["stages"]["sft"]["bits_per_byte"] / alone < 1.1

    write = MetricsLog.write

    def crash(log, row):
        if row["step"] == 10:
            raise InterruptedError
        write(log, row)

    for stage in ("corpus", "tokenizer", "tokenize"):
        shutil.copytree(whole / stage, root / "again" / stage)
    for stage in ("pretrain", "sft"):
        with monkeypatch.context() as patch:
            patch.setattr(MetricsLog, "write", crash)
            with pytest.raises(InterruptedError):
                run(root, "again", "--until", stage)
        unfinished = root / "again" / f"{stage}.partial"
        assert main(["export", str(unfinished), str(root / f"exported-{stage}")]) == 0
        exported = load_file(root / f"exported-{stage}" / "model.safetensors")
        assert exported.keys() == before.keys()
        if stage == "sft":  # what was frozen comes from the model that the stage began with
            assert torch.equal(exported["wpe.weight"], before["wpe.weight"])
        assert run(root, "again", "--until", stage) == 0
        assert rows(root / "again" / stage) == rows(whole / stage)
        weights, undisturbed = (load_file(root / out / stage / "model.safetensors") for out in ("again", "whole"))
        assert all(torch.equal(weights[name], undisturbed[name]) for name in undisturbed)


def test_a_checkpoint_without_its_run_says_what_it_lacks(root, monkeypatch, capsys):
    assert run(root, "whole", "--until", "pretrain") == 0
    (root / "elsewhere").mkdir()

    def crash(log, row):
        if row["step"] == 6:
            raise InterruptedError

    monkeypatch.setattr(MetricsLog, "write", crash)
    with pytest.raises(InterruptedError):
        run(root, "whole", "--until", "sft")
    shutil.copytree(root / "whole" / "sft.partial" / "checkpoints" / "step-4", root / "elsewhere" / "step-4")
    capsys.readouterr()
    assert main(["export", str(root / "elsewhere" / "step-4"), str(root / "exported")]) == 2
    assert "lacks 1 weights that were frozen (wpe.weight)" in capsys.readouterr().err


def test_what_needs_answers_is_refused(root, capsys):
    assert run(root, "whole", "--until", "sft") == 0
    question = {"kind": "fact", "id": "f", "prompt": "猫吃什么？", "answer": "鱼", "accept": ["鱼"]}
    (root / "questions.jsonl").write_text(json.dumps(question, ensure_ascii=False) + "\n", encoding="utf-8")
    capsys.readouterr()
    assert run(root, "whole", f"evaluate.questions={(root / 'questions.jsonl').as_posix()}") == 2
    assert "a model of the class Foreign cannot generate text" in capsys.readouterr().err


def test_its_vocabulary_must_be_that_of_the_shards(root, capsys):
    Foreign(310, 64, 16, 2).save(root / "foreign")
    assert run(root, "whole", "--until", "pretrain") == 2
    assert "310 embedding rows are not the 300 entries" in capsys.readouterr().err
