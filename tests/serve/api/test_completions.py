"""Texts and token ids, several at once, with what was asked before them."""

import pytest

from .scripted import Scripted, error_of


def test_prompts_and_choices_are_numbered(serving):
    live = serving(lambda request, choice: [f"{request.prompt}{choice}"])
    answer = live.complete(prompt=["甲", "乙", "丙"], n=2).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [choice["text"] for choice in answer["choices"]] == [f"{p}{c}" for p in "甲乙丙" for c in (0, 1)]
    assert answer["usage"]["prompt_tokens"] == 3  # each once, however many answers it has
    assert answer["usage"]["completion_tokens"] == 6 and answer["object"] == "text_completion"
    indices = {
        c["index"] for e in live.events("/v1/completions", prompt=["甲", "乙", "丙"], n=2)[:-1] for c in e["choices"]
    }
    assert indices == set(range(6))


@pytest.mark.parametrize(("prompt", "prompts"), [
    ("春天", ["春天"]), (["春天"], ["春天"]), (["春", "天"], ["春", "天"]),
    ([5, 6], [[5, 6]]), ([[5, 6]], [[5, 6]]), ([[5], [6, 7]], [[5], [6, 7]]),
])  # fmt: skip
def test_four_kinds_of_prompts(serving, prompt, prompts):
    live = serving()
    assert live.complete(prompt=prompt).status_code == 200
    assert [request.prompt for request in live.backend.requests] == prompts


def test_lengths(serving):
    live = serving(lambda request, choice: ["a"] * 50)
    assert live.complete().json()["usage"]["completion_tokens"] == 16  # OpenAI's default
    assert live.complete(max_tokens=20).json()["usage"]["completion_tokens"] == 20
    assert live.complete(max_tokens=0).status_code == 400


@pytest.mark.parametrize("prompt", ["春天x", [0x6625, 0x5929, 0x78]])
def test_echo_without_an_answer_scores_the_prompt(plain, prompt):
    """How evaluation harnesses ask for likelihoods."""
    answer = plain.complete(prompt=prompt, max_tokens=0, echo=True, logprobs=1).json()
    (choice,) = answer["choices"]
    assert choice["text"] == "春天x" and answer["usage"]["completion_tokens"] == 0
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "tokens": ["春", "天", "x"],
        "token_logprobs": [None, -0.5, -0.5],
        "top_logprobs": [None, {"x": -0.25}, {"x": -0.25}],
        "text_offset": [0, 1, 2],
    }


@pytest.mark.parametrize("prompt", ["春天", [0x6625, 0x5929], ["春天", "春天"]])
def test_echo_stands_before_each_answer(plain, prompt):
    for more in ({}, {"logprobs": 1}):
        answer = plain.complete(prompt=prompt, echo=True, n=2, **more).json()
        for choice in answer["choices"]:
            assert choice["text"] == f"春天你好，{choice['index'] % 2}！"
            if more:
                assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
                assert choice["logprobs"]["text_offset"] == list(range(7))
            else:
                assert choice["logprobs"] is None


def test_one_prompt_that_is_refused_refuses_all(serving):
    live = serving(Scripted(lambda request, choice: ["a"] * 500, slots=1))
    answer = live.complete(prompt=["a", "b", "长" * 1001], max_tokens=500)
    assert answer.status_code == 400 and error_of(answer)["code"] == "context_length_exceeded"
    assert error_of(answer)["param"] == "prompt"


@pytest.mark.parametrize("best_of", [None, 1])
def test_best_of_what_there_is(plain, best_of):
    assert plain.complete(best_of=best_of, suffix=None).status_code == 200
