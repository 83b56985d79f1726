"""What a whole small run needs: text, conversations and pairs, and a recipe for all of them."""

import json
from functools import partial
from pathlib import Path

import pytest

from mengya.train.estimate import measure

from ..conftest import write_jsonl


@pytest.fixture(autouse=True)
def short_plans(monkeypatch):
    """A plan measures each training for a tenth of a second, not for four."""
    monkeypatch.setattr("mengya.train.estimate.measure", partial(measure, seconds=0.1))


def write_animals(folder: Path) -> None:
    """text.jsonl, talks.jsonl and pairs.jsonl, each 150 rows on what animals eat."""
    animals = {"猫": "鱼", "牛": "青草", "熊猫": "竹子", "兔子": "萝卜", "猴子": "桃子"}
    lines, talks, pairs = [], [], []
    for number in range(150):
        animal, food = list(animals.items())[number % 5]
        lines.append(
            {"text": f"第{number}个故事：{animal}喜欢吃{food}，天天都吃{food}。It has eaten {number} of them."}
        )
        talks.append({"instruction": f"{number}：{animal}吃什么？", "output": f"{animal}吃{food}。"})
        pairs.append({"prompt": f"{number}：{animal}吃什么？", "chosen": f"{animal}吃{food}。", "rejected": "不知道！"})
    for name, content in (("text", lines), ("talks", talks), ("pairs", pairs)):
        write_jsonl(folder / f"{name}.jsonl", content)


def three_trainings(corpus: Path, sft: Path, dpo: Path, training: str, shape: str, vocabulary: int = 330) -> str:
    """A recipe from text to a model tuned on pairs; `training`: the keys of all three, `shape`: those of the model."""
    return f"""
[corpus]
path = {json.dumps(str(corpus))}
heldout = 0.05

[tokenizer]
vocab_size = {vocabulary}
sample_bytes = 500_000

[tokenize]

[pretrain]
{training}
[pretrain.model]
{shape}
[sft]
path = {json.dumps(str(sft))}
heldout = 0.1
{training}
[dpo]
path = {json.dumps(str(dpo))}
heldout = 0.1
{training}"""
