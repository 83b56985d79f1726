"""What users of other servers complained of, in public trackers."""

import gzip
import json
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


def test_files_that_windows_wrote_begin_with_a_mark(plain):
    content = b"\xef\xbb\xbf" + json.dumps({"messages": USER}).encode()
    answer = plain.http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


def test_a_body_that_is_packed_is_refused_as_such(plain):
    """It was told that it is not UTF-8."""
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    content = gzip.compress(json.dumps({"messages": USER}).encode())
    answer = plain.http.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 415 and "Content-Encoding 'gzip'" in error_of(answer)["message"]
    content, headers["Content-Encoding"] = json.dumps({"messages": USER}), "identity"
    assert plain.http.post("/v1/chat/completions", content=content, headers=headers).status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/v1/models", 200), ("/nothing", 404)])
def test_the_head_of_an_answer_alone(plain, path, status):
    """punkpeye/fastmcp PR 275, mozilla-it/ctms-api 165: load balancers ask for it, and took the server for dead."""
    answer = plain.http.head(path)
    assert answer.status_code == status and not answer.content
    assert plain.http.head("/v1/chat/completions").status_code == 405


def test_likelihoods_that_are_not_wanted_are_not_there(plain):
    """False is no number of them, though Python takes it for 0."""
    assert plain.complete(logprobs=False).json()["choices"][0]["logprobs"] is None
    assert plain.complete(logprobs=0).json()["choices"][0]["logprobs"]["tokens"]


@pytest.mark.parametrize(("path", "body", "param"), [
    ("chat/completions", {"guided_json": {"type": "object"}}, "guided_json"),
    ("chat/completions", {"guided_choice": ["a", "b"]}, "guided_choice"),
    ("chat/completions", {"structured_outputs": {"json": {}}}, "structured_outputs"),
    ("chat/completions", {"grammar": "root ::= x"}, "grammar"),
    ("chat/completions", {"response_format": {"type": "json_object", "schema": {"type": "array"}}},
     "response_format.schema"),
    ("completions", {"response_format": {"type": "json_object"}}, "response_format"),
    ("completions", {"use_beam_search": True}, "use_beam_search"),
])  # fmt: skip
def test_a_form_that_cannot_be_kept_is_not_passed_over(serving, path, body, param):
    """Other servers' ways to ask for it: an answer in any form at all came back, and nobody was told."""
    live = serving(grammar_for=lambda backend, schema: lambda: None)
    answer = live.post(f"/v1/{path}", {"messages": USER, "prompt": "a"} | body)
    assert answer.status_code == 400 and error_of(answer)["param"] == param
    harmless = {"guided_json": None, "grammar": "", "use_beam_search": False, "response_format": {"type": "text"}}
    assert live.post(f"/v1/{path}", {"messages": USER, "prompt": "a"} | harmless).status_code == 200


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions"])
def test_an_address_without_v1_is_told_where_it_ends(plain, path):
    """Every client wants its base URL in another way."""
    answer = plain.post(path, {"messages": USER})
    assert answer.status_code == 404 and "ends in /v1" in error_of(answer)["message"]


def test_a_part_without_text_is_named(plain):
    """It was told that parts of type text are not understood, and to use text."""
    error = error_of(plain.chat(messages=[{"role": "user", "content": [{"type": "text"}]}]))
    assert error["param"] == "messages[0].content[0].text"
