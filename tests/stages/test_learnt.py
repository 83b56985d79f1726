"""What is learnt in whole stages: ends of turns, rows in which nothing is, templates without an answer."""

import json
import shutil

import pytest

from mengya.data.packing import PackedGroups
from mengya.data.readers import Row
from mengya.data.rendering import conversation_example, write_examples
from mengya.data.shards import Shards
from mengya.metrics import read_jsonl
from mengya.text.chat import Chat

from ..conftest import write_jsonl
from ..text.published import PUBLISHED

TALK = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "好"},
    {"role": "user", "content": "how are you? " * 30},
    {"role": "assistant", "content": "fine"},
]


@pytest.mark.parametrize("name", ["llama3", "tiny-llama2", "qwen3"])
@pytest.mark.parametrize("seq_len", [2000, 64])
def test_the_end_of_every_answer_is_a_label_even_where_it_also_fills_rows(tmp_path, name, seq_len):
    """pad = eos; and a prompt that is longer than a row loses its beginning, not its answer."""
    model = PUBLISHED[name]
    chat = Chat.load(model.make(tmp_path / name), model.ours)
    example = conversation_example(chat, Row("talks", 1, TALK), seq_len=seq_len)
    assert example.cut == (seq_len == 64)
    folders = tmp_path / "train", tmp_path / "heldout"
    write_examples([example], chat.tokenizer.vocab_size, *folders, 0.0, "nothing")
    packer = PackedGroups(Shards(folders[0]), seq_len, chat.tokenizer.eos_id, 0)
    end = chat.tokenizer.control_ids[model.end]
    labels = [int(label) for index in range(len(packer)) for label in packer.row(index).labels]
    assert labels.count(end) == 2
    whole = conversation_example(chat, Row("talks", 1, TALK), seq_len=10**6).documents
    assert sum(label >= 0 for label in labels) == sum(sum(document.mask) for document in whole)


def again(grown, mengya, *overrides):
    shutil.rmtree(grown / "run" / "sft", ignore_errors=True)
    shutil.rmtree(grown / "run" / "sft.partial", ignore_errors=True)
    for stage in ("dpo", "evaluate"):
        shutil.rmtree(grown / "run" / stage, ignore_errors=True)
    return mengya("run", "whole.toml", "sft.steps=1", "sft.heldout=0.3", *overrides, "--until", "sft", "--out", "run")


def test_a_row_in_which_nothing_is_learnt_changes_no_loss_and_is_counted(grown, mengya):
    rows = [{"instruction": f"{i}?", "output": f"{i}!"} for i in range(9)]
    write_jsonl(grown / "conversations.jsonl", rows)
    assert again(grown, mengya).code == 0
    losses = [{k: v for k, v in row.items() if "loss" in k} for row in read_jsonl(grown / "run/sft/metrics.jsonl")]
    unlearnt = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}
    late = {"messages": [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "a"}]}
    write_jsonl(grown / "conversations.jsonl", [*rows, unlearnt, late])
    result = again(grown, mengya)
    assert result.code == 0 and "2 quarantined" in result.out, result.err
    assert losses == [
        {k: v for k, v in row.items() if "loss" in k} for row in read_jsonl(grown / "run/sft/metrics.jsonl")
    ]
    write_jsonl(grown / "conversations.jsonl", [unlearnt] * 3)
    result = again(grown, mengya)
    assert result.code == 2 and "no turn of the assistant is to be learnt" in result.err


def test_what_an_assistant_says_before_anybody_asked_is_left_out_and_counted(grown, mengya):
    talk = [{"role": "assistant", "content": "welcome"}, *TALK[:2]]
    write_jsonl(
        grown / "conversations.jsonl",
        [{"messages": [*talk[:1], {**talk[1], "content": f"{i}?"}, talk[2]]} for i in range(9)],
    )
    result = again(grown, mengya)
    assert result.code == 0 and "9 read partly" in result.out, result.out


MARKED_NOWHERE = (
    "{% for m in messages %}{{ m.content }}<|im_end|>{% if m.role == 'nobody' %}{% generation %}x{% endgeneration %}"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves out what the messages say"),
        (MARKED_NOWHERE, "marks nothing that an assistant says"),
    ],
)
def test_a_template_without_an_assistant_turn_is_refused_before_anything_runs(grown, mengya, template, words):
    shutil.copytree(grown / "run" / "pretrain", grown / "base")
    (grown / "base" / "stage.json").unlink()
    path = grown / "base" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}), encoding="utf-8")
    result = again(grown, mengya, "sft.model=base")
    assert result.code == 2 and words in result.err and not (grown / "run" / "sft.partial").exists(), result.err
