"""What users of other servers complained of, in public trackers."""

import re

import pytest

from .scripted import USER, Say, error_of

TOOL = {"type": "function", "function": {"name": "weather", "description": None, "parameters": None}}
CALLS = '<tool_call>{"name": "weather", "arguments": {"n": 1}}</tool_call>' * 3


def test_calls_side_by_side_have_indices_and_ids_of_their_own(serving):
    """vercel/ai PR 14277, apache/maka 1976: all had the index 0, and were merged; openai-python 2806: none had one."""
    live = serving(lambda request, choice: [CALLS])
    calls = [c for e in live.events(tools=[TOOL])[:-1] for x in e["choices"] for c in x["delta"].get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1, 2]
    assert len({call["id"] for call in calls}) == 3


def test_ids_of_calls_are_such_as_every_template_takes(serving):
    """llama.cpp 11402: Mistral's template wants nine letters or digits."""
    live = serving(lambda request, choice: [CALLS])
    for call in live.chat(tools=[TOOL]).json()["choices"][0]["message"]["tool_calls"]:
        assert re.fullmatch(r"[0-9a-zA-Z]{9}", call["id"])


def test_no_calls_in_the_history_are_none(serving):
    """vllm 13978: templates take an empty list for calls."""
    live = serving()
    assert (
        live.chat(messages=[*USER, {"role": "assistant", "content": "a", "tool_calls": []}, *USER]).status_code == 200
    )
    assert "tool_calls" not in live.backend.requests[-1].prompt.messages[1]


def test_what_a_tool_leaves_open_is_not_there(serving):
    """Templates walk through parameters; null is no schema."""
    live = serving()
    live.chat(tools=[TOOL | {"strict": True}])
    assert live.backend.requests[-1].prompt.tools == [
        {"type": "function", "function": {"name": "weather"}, "strict": True}
    ]
    schema = {"type": "object", "properties": {"a": {"default": None}}}
    live.chat(tools=[{"type": "function", "function": {"name": "weather", "parameters": schema}}])
    assert live.backend.requests[-1].prompt.tools[0]["function"]["parameters"] == schema


@pytest.mark.parametrize(
    "path", ["/v1/models/", "//v1/models", "/v1//models", "/v1/models//sprout", "/v1/models/sprout/"]
)
def test_a_slash_too_many(plain, path):
    """lmstudio-bug-tracker 1988, vllm-project/aibrix 1740, sigoden/aichat 767."""
    answer = plain.http.get(plain.url + path)
    assert answer.status_code == 200 and "sprout" in answer.text


def test_the_end_comes_once(plain):
    """skye-harris/hass_local_openai_llm PR 92: the frame with the usage had a reason to end, too."""
    events = plain.events(stream_options={"include_usage": True})
    assert sum(choice["finish_reason"] is not None for event in events[:-1] for choice in event["choices"]) == 1


def test_likelihoods_are_asked_for_in_two_ways(plain):
    """jjang-ai/vmlx PR 99: some send logprobs=true to /v1/completions; llama.cpp 27174: and want the prompt's."""
    for logprobs in (True, 1):
        lists = plain.complete(echo=True, max_tokens=1, logprobs=logprobs).json()["choices"][0]["logprobs"]
        assert lists["tokens"] == ["春", "天", "你"] and lists["token_logprobs"][0] is None


def test_a_connection_outlives_the_pause_of_an_agent(plain):
    """peonist-ai/halogen-flash-server 25, NVIDIA-NeMo/Gym PR 1555: closed after 5 seconds, just when it was used."""
    assert plain.server.config.timeout_keep_alive > 60


def test_to_go_on_with_an_answer_is_refused_and_not_ignored(plain):
    """vllm 6772, lmdeploy 2798: what was said so far was answered instead of continued."""
    error = error_of(plain.chat(continue_final_message=True))
    assert error["param"] == "continue_final_message"
    assert plain.chat(continue_final_message=False).status_code == 200


def test_the_size_of_vectors_may_be_named_if_it_is_theirs(plain):
    """Some clients always send it."""
    body = {"model": "sprout", "input": "a"}
    assert plain.post("/v1/embeddings", body | {"dimensions": 3}).status_code == 200
    assert error_of(plain.post("/v1/embeddings", body | {"dimensions": 5}))["param"] == "dimensions"


def test_an_answer_may_take_long(serving):
    """gpustack 2638: the server ended the connection while the model went on."""
    live = serving(lambda request, choice: [Say("春", wait=1.5)], limits={"ping_seconds": 0.2, "head_seconds": 0.5})
    assert live.chat().json()["choices"][0]["message"]["content"] == "春"
