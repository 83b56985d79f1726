"""The form of /ai/llm, as it was published."""

import json

import pytest

from .scripted import error_of

PUBLISHED = {
    "message": "你是谁", "history": [], "n": 1, "temperature": 0.3, "max_tokens": 8192, "stream": True,
    "stop_token_ids": [151643], "frequency_penalty": 1.2,
}  # fmt: skip


@pytest.mark.parametrize("path", ["generation_stream", "generation"])
def test_the_published_requests(serving, path):
    live = serving()
    answer = live.post(f"/ai/llm/{path}", PUBLISHED)
    parts = [json.loads(part) for part in answer.text.split("\0")[:-1]]
    assert parts == [{"text": ["你好，0！"[: end + 1]]} for end in range(5)]
    assert answer.text.endswith("\0")
    request = live.backend.requests[-1]
    assert (request.sampling.temperature, request.sampling.frequency_penalty, request.stop_ids) == (0.3, 1.2, [151643])
    assert live.post(f"/ai/llm/{path}", PUBLISHED | {"stream": False}).json() == {"text": ["你好，0！"]}


def test_what_the_path_says_if_the_body_does_not(plain):
    assert plain.post("/ai/llm/generation", {"message": "a"}).json() == {"text": ["你好，0！"]}
    assert plain.post("/ai/llm/generation_stream", {"message": "a"}).text.count("\0") == 5


@pytest.mark.parametrize("history", [
    [["你好", "你好！"]],
    [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}],
])  # fmt: skip
def test_two_kinds_of_history(serving, history):
    live = serving()
    assert (
        live.post("/ai/llm/generation", {"message": "你是谁", "history": history, "n": 2}).json()["text"][1]
        == "你好，1！"
    )
    assert live.backend.requests[-1].prompt.messages == [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好！"},
        {"role": "user", "content": "你是谁"},
    ]


@pytest.mark.parametrize(("body", "param"), [
    ({}, "message"), ({"message": None}, "message"), ({"message": "a", "history": [["x"]]}, "history[0]"),
    ({"message": "a", "history": "x"}, "history"), ({"message": "a", "n": 0}, "n"),
    ({"message": "a", "history": [["x", None]]}, "history[0][1]"),
])  # fmt: skip
def test_bodies_that_are_wrong(plain, body, param):
    answer = plain.post("/ai/llm/generation_stream", body)
    assert answer.status_code == 400 and error_of(answer)["param"].startswith(param.split("[")[0])
