"""Held-out questions are asked in their order and counted by task."""

from types import SimpleNamespace

import pytest
import torch

from mengya.errors import UserError
from mengya.evaluate import questions as module
from mengya.evaluate.questions import ask, results
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM
from mengya.tasks import TASKS
from mengya.tasks.task import Question
from mengya.text.chat import Chat
from mengya.text.tokenizer import train_tokenizer


def fact(prompt: str, id: str = "1") -> Question:
    return Question(TASKS["fact"], id, {"prompt": prompt, "answer": "x"})


FACT = fact("法国的首都是哪里？")
SUM = Question(TASKS["addition"], "2", {"prompt": "37+45=?", "answer": "82"})
CHOICE = Question(TASKS["choice"], "3", {"prompt": "1+1", "choices": ["1", "2"], "answer": "B"})


def test_results_by_task_in_the_order_in_which_they_occur() -> None:
    found = results([SUM, FACT, SUM, FACT, CHOICE], [""] * 5, [False, True, 0.5, True, 1])
    assert [(result.key, result.accuracy.correct, result.accuracy.total) for result in found] == [
        ("addition_accuracy", 0.5, 2),
        ("facts_accuracy", 2, 2),
        ("choice_accuracy", 1, 1),
    ]
    assert [(result.heading, result.note) for result in found] == [
        (question.task.heading, question.task.note) for question in (SUM, FACT, CHOICE)
    ]
    with pytest.raises(ValueError, match="shorter"):
        results([FACT, SUM], ["", ""], [True])
    assert results([], [], []) == []


def test_ask_goes_through_the_template_and_keeps_the_order(make_model, chat, monkeypatch) -> None:
    def echo(stop_ids, requests):
        assert stop_ids == {256, 258}
        assert {(r.sampling.temperature, r.sampling.max_new_tokens) for r in requests} == {(0, 10)}
        return [[SimpleNamespace(text=f" {chat.tokenizer.decode(request.prompt)}! ")] for request in requests]

    monkeypatch.setattr(module, "Engine", lambda model, tokenizer, stop_ids: set(stop_ids))
    monkeypatch.setattr(module, "generate", echo)
    asked = [fact("?" * (i % 4) + str(i)) for i in range(7)] + [CHOICE]
    responses = ask(make_model(context=32), chat, asked, max_new_tokens=10)
    assert responses == [
        f"u{question.messages()[0]['content']}\na!" for question in asked
    ]  # a fresh user turn, then the assistant's header


def test_ask_names_the_question_that_is_too_long(make_model, chat) -> None:
    with pytest.raises(UserError, match=r"'long' has 40 tokens.*context of 40"):
        ask(make_model(context=40), chat, [fact("p" * 34, "long")], max_new_tokens=4)


def test_ask_names_the_question_that_the_template_refuses(make_model, chat, monkeypatch) -> None:
    def refuse(*rest, **named):
        raise UserError("no digits, please")

    monkeypatch.setattr(chat, "encode", refuse, raising=False)
    with pytest.raises(UserError, match="question 'odd': no digits, please"):
        ask(make_model(context=40), chat, [fact("1", "odd")])


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
        ids, _ = real_chat.encode(question.messages(), add_generation_prompt=True)
        new: list[int] = []
        for _ in range(6):
            with torch.no_grad():
                token = int(model(torch.tensor([ids + new]))[0, -1].argmax())
            if token in real_chat.stop_ids:
                break
            new.append(token)
        assert response == real_chat.tokenizer.decode(new).strip()
