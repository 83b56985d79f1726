"""Reading, asking and grading of held-out questions."""

import json
from pathlib import Path

import pytest
import torch

from mengya.errors import UserError
from mengya.evaluate import questions as module
from mengya.evaluate.questions import Question, accuracies, ask, grade, last_integer, read_questions
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM
from mengya.text.chat import Chat
from mengya.text.tokenizer import train_tokenizer

FACT = Question("fact", "f1", "法国的首都是哪里？", "巴黎", ("是巴黎", "Paris"))
SUM = Question("addition", "a1", "37+45=?", "82")
UNKNOWN = Question("unknown", "u1", "我今天早饭吃了什么？", "我不知道。", ())


@pytest.mark.parametrize(
    "response",
    [
        "巴黎",
        " 巴黎。",
        "巴黎．",
        "巴黎｡",
        "巴黎！",
        "巴黎？！ \n",
        "巴黎. ",
        "巴黎…",
        "是巴黎。",
        "Ｐａｒｉｓ",
        "\u3000巴黎",
    ],
)
def test_facts_match_after_normalisation(response: str) -> None:
    assert grade(FACT, response)


@pytest.mark.parametrize(
    "response",
    ["", " ", "。", "伦敦", "巴黎和伦敦", "巴 黎", "答案是巴黎", "paris", "“巴黎”", "巴黎，", "巴黎。巴黎", "不是巴黎"],
)
def test_facts_match_exactly(response: str) -> None:
    assert not grade(FACT, response)


@pytest.mark.parametrize(
    "response",
    [
        "82",
        "37+45=82",
        "37+45=82。",
        "８２",
        "37 + 45 = 82.",
        "答案是82，对吗？",
        "３７＋４５＝８２",
        "先算7+5=12，再算，得82",
        "等于 82 个。",
    ],
)
def test_additions_take_the_last_integer(response: str) -> None:
    assert grade(SUM, response)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "八十二",
        "83",
        "82+1",
        "37+45=82，不对，是83",
        "82=37+45",
        "-82",
        "−82",
        "8.2",
        "82.5",
        "182",
        "820",
        "8,2",
        "0.82",
        "8 2",
        "没有数",
    ],
)
def test_additions_accept_nothing_else(response: str) -> None:
    assert not grade(SUM, response)


def test_accept_is_no_way_round_the_sum() -> None:
    assert not grade(Question("addition", "a", "1+1", "2", ("3", "三")), "3")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("37-45", 45),
        ("3-(-5)", -5),
        ("1,024", None),
        ("2.", 2),
        ("3.14", None),
        ("", None),
        ("007", 7),
        ("٣", None),
        ("9" * 5000, None),
    ],
)
def test_last_integer(text: str, number: int | None) -> None:
    assert last_integer(text) == number


def test_unknown_is_graded_like_a_fact() -> None:
    assert grade(UNKNOWN, "我不知道")
    assert not grade(UNKNOWN, "面包")


def test_accuracies_by_kind_and_only_of_kinds_that_occur() -> None:
    result = accuracies([FACT, SUM, FACT], ["巴黎。", "83", "伦敦"])
    assert {key: (value.correct, value.total) for key, value in result.items()} == {
        "facts_accuracy": (1, 2),
        "addition_accuracy": (0, 1),
    }
    with pytest.raises(ValueError, match="shorter"):
        accuracies([FACT, SUM], ["巴黎"])


def test_ask_goes_through_the_template_and_keeps_the_order(make_model, chat, monkeypatch) -> None:
    def echo(model, prompts, sampling, stop_ids):
        assert (sampling.temperature, sampling.max_new_tokens, set(stop_ids)) == (0, 10, {256, 258})
        return [chat.tokenizer.encode(f" {chat.tokenizer.decode(prompt)}! ") for prompt in prompts]

    monkeypatch.setattr(module, "generate", echo)
    asked = [Question("fact", str(i), "?" * (i % 4) + str(i), "x") for i in range(7)]
    responses = ask(make_model(context=32), chat, asked, max_new_tokens=10)
    assert responses == [
        f"u{question.prompt}\na!" for question in asked
    ]  # a fresh user turn, then the assistant's header


def test_ask_names_the_question_that_is_too_long(make_model, chat) -> None:
    with pytest.raises(UserError, match=r"'long' has 40 tokens.*context of 40"):
        ask(make_model(context=40), chat, [Question("fact", "long", "p" * 34, "x")], max_new_tokens=4)


@pytest.fixture(scope="module")
def real_chat() -> Chat:
    return Chat(train_tokenizer(["37+45=82 巴黎 你好"] * 5, vocab_size=259, max_token_length=16), "chatml")


def test_ask_a_real_model_greedily(real_chat: Chat) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = ModelConfig(**shape, intermediate_size=64, max_position_embeddings=64, vocab_size=259)
    model = CausalLM(config).eval()
    responses = ask(model, real_chat, [FACT, SUM], max_new_tokens=6)
    for question, response in zip([FACT, SUM], responses, strict=True):
        ids, _ = real_chat.encode([{"role": "user", "content": question.prompt}], add_generation_prompt=True)
        new: list[int] = []
        for _ in range(6):
            with torch.no_grad():
                token = int(model(torch.tensor([ids + new]))[0, -1].argmax())
            if token in real_chat.stop_ids:
                break
            new.append(token)
        assert response == real_chat.tokenizer.decode(new).strip()


def write(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n\n")
    return path


GOOD = {"kind": "fact", "id": "1", "prompt": "天空\u2028是什么颜色？", "answer": "蓝色", "accept": ["蓝"]}


def test_read_questions(tmp_path: Path) -> None:
    plain = {"kind": "addition", "id": "2", "prompt": "1+1", "answer": "2", "extra": "ignored"}
    read = read_questions(write(tmp_path / "q.jsonl", GOOD, plain))
    assert read == [Question("fact", "1", GOOD["prompt"], "蓝色", ("蓝",)), Question("addition", "2", "1+1", "2")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"{broken", "not a JSON object in UTF-8"),
        (b'{"kind": "\xff"}', "not a JSON object in UTF-8"),
        ([1, 2], "is not an object"),
        ({**GOOD, "kind": "riddle"}, "kind='riddle' is unknown; use one of fact, addition, unknown"),
        ({**GOOD, "answer": ""}, "answer='' must be a non-empty string"),
        ({**GOOD, "id": 3}, "id=3 must be a non-empty string"),
        ({"kind": "fact"}, "id=None must be"),
        ({**GOOD, "accept": "蓝"}, "accept='蓝' must be a list of strings"),
        ({**GOOD, "accept": ["。"]}, "nothing but punctuation"),
        ({**GOOD, "kind": "addition"}, "must be an integer in digits"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "q.jsonl", GOOD, row)
    with pytest.raises(UserError, match=r"q\.jsonl:2: ") as caught:
        read_questions(path)
    assert message in str(caught.value)


def test_missing_or_empty_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.jsonl: No such file"):
        read_questions(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="holds no question"):
        read_questions(write(tmp_path / "empty.jsonl"))
