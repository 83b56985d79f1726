"""A stream, put together, is the plain answer."""

import json

import pytest

from mengya.infer.request import LogProb

from .scripted import Say, hello

TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "time", "description": "now"}},
]


def calls(request, choice):
    """Text, then calls whose marks are cut anywhere."""
    text = '我查一下。\n<tool_call>\n{"name": "weather", "arguments": {"城市": "北京"}}\n</tool_call>\n'
    text += '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
    return [text[i : i + 3 + choice] for i in range(0, len(text), 3 + choice)]


def fold(events):
    """What a client makes of the chunks of a stream: choices as in a plain answer, and usage."""
    choices, usage = {}, None
    for chunk in events[:-1]:
        assert isinstance(chunk["choices"], list) and chunk["object"] == "chat.completion.chunk"
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            got = choices.setdefault(choice["index"], {"content": "", "calls": {}, "logprobs": [], "finish": []})
            delta = choice["delta"]
            if "role" in delta:
                assert got == {"content": "", "calls": {}, "logprobs": [], "finish": []}, "the role comes first"
                got["role"] = delta["role"]
            got["content"] += delta.get("content", "")
            for call in delta.get("tool_calls", ()):
                assert "content" not in delta
                mine = got["calls"].setdefault(call["index"], {"arguments": ""})
                mine["arguments"] += call["function"].pop("arguments")
                mine |= {"id": call["id"], "type": call["type"]} | call["function"]
            got["logprobs"] += (choice["logprobs"] or {}).get("content", [])
            assert "finish_reason" in choice
            if choice["finish_reason"] is not None:
                got["finish"].append(choice["finish_reason"])
    assert events[-1] == "[DONE]"
    return choices, usage


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("answer", "more"), [
    (hello, {}),
    (hello, {"max_tokens": 2}),
    (hello, {"logprobs": True, "top_logprobs": 2}),
    (calls, {"tools": TOOLS}),
    (calls, {"tools": TOOLS, "logprobs": True}),
    (calls, {"tools": TOOLS, "parallel_tool_calls": False}),
    (calls, {"tools": TOOLS, "tool_choice": "none"}),
    (calls, {"tools": TOOLS, "max_tokens": 9}),
    (lambda request, choice: [], {}),
])  # fmt: skip
def test_stream_and_plain_answer_are_twins(serving, answer, more, n):
    live = serving(answer)
    whole = live.chat(n=n, **more).json()
    choices, usage = fold(live.events(n=n, stream_options={"include_usage": True}, **more))
    assert usage == whole["usage"] and len(whole["choices"]) == n == len(choices)
    for choice in whole["choices"]:
        message, got = choice["message"], choices[choice["index"]]
        assert got["role"] == message["role"] == "assistant"
        assert got["content"] == (message["content"] or "")
        assert got["finish"] == [choice["finish_reason"]]
        assert got["logprobs"] == (choice["logprobs"] or {"content": []})["content"]
        plain = [call["function"] for call in message.get("tool_calls", [])]
        assert [{k: call[k] for k in ("name", "arguments")} for call in got["calls"].values()] == plain
        assert all(call["id"] and call["type"] == "function" for call in got["calls"].values())


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    "more", [{}, {"logprobs": 2}, {"echo": True}, {"echo": True, "logprobs": 1}, {"max_tokens": 2}]
)
@pytest.mark.parametrize("prompt", ["春天", ["春天", "秋"], [26149, 22825], [[26149], [22825, 65]]])
def test_completions_are_twins(plain, prompt, more, n):
    body = {"prompt": prompt, "n": n} | more
    whole = plain.complete(**body).json()
    events = plain.events("/v1/completions", stream_options={"include_usage": True}, **body)
    assert events[-1] == "[DONE]" and events[-2]["usage"] == whole["usage"]
    choices = {}
    for chunk in events[:-1]:
        for choice in chunk["choices"]:
            got = choices.setdefault(choice["index"], {"text": "", "logprobs": None, "finish": []})
            got["text"] += choice["text"]
            if choice["logprobs"]:
                before = got["logprobs"] or {key: [] for key in choice["logprobs"]}
                got["logprobs"] = {name: before[name] + more for name, more in choice["logprobs"].items()}
            got["finish"] += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert [choice["index"] for choice in whole["choices"]] == sorted(choices)
    for choice in whole["choices"]:
        got = choices[choice["index"]]
        assert (got["text"], got["finish"]) == (choice["text"], [choice["finish_reason"]])
        assert got["logprobs"] == choice["logprobs"]


@pytest.mark.parametrize(("options", "frames_with_usage"), [
    ({}, 0),
    ({"stream_options": None}, 0),
    ({"stream_options": {"include_usage": False}}, 0),
    ({"stream_options": {"include_usage": True}}, 1),
])  # fmt: skip
def test_usage_in_a_stream_only_if_it_is_asked_for(plain, options, frames_with_usage):
    events = plain.events(**options)
    counted = [event for event in events[:-1] if "usage" in event]
    assert len(counted) == frames_with_usage
    assert all(event["choices"] for event in events[:-1] if "usage" not in event)
    if counted:
        assert events[-2] is counted[0] and counted[0]["choices"] == []
        assert counted[0]["usage"] == plain.chat().json()["usage"]


@pytest.mark.parametrize("finish", ["stop", "length", "FINISH_ABORT", ""])
def test_finish_reasons_are_those_of_the_protocol(serving, finish):
    live = serving(lambda request, choice: [Say("a", finish=finish)])
    legal = {"stop", "length"}
    assert live.chat().json()["choices"][0]["finish_reason"] in legal
    assert live.complete().json()["choices"][0]["finish_reason"] in legal
    reasons = [choice["finish_reason"] for event in live.events()[:-1] for choice in event["choices"]]
    assert len([reason for reason in reasons if reason is not None]) == 1 and reasons[-1] in legal


@pytest.mark.parametrize(("choice", "finish"), [
    ("auto", "tool_calls"),
    ("required", "tool_calls"),
    ({"type": "function", "function": {"name": "weather"}}, "stop"),  # as OpenAI's server (vllm PR 25054)
])  # fmt: skip
def test_how_an_answer_with_a_call_ends(serving, choice, finish):
    text = '{"name": "weather", "arguments": {"城市": "北京"}}'
    live = serving(lambda request, choice: [text[:20], text[20:]], grammar_for=lambda backend, schema: lambda: None)
    whole = live.chat(tools=TOOLS, tool_choice=choice).json()["choices"][0]
    events = live.events(tools=TOOLS, tool_choice=choice)
    assert whole["finish_reason"] == finish == events[-2]["choices"][0]["finish_reason"]
    assert whole["message"]["content"] is None
    assert json.loads(whole["message"]["tool_calls"][0]["function"]["arguments"]) == {"城市": "北京"}
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert [sorted(delta) for delta in deltas] == [["content", "role"], ["tool_calls"], []]


def test_each_choice_has_its_role_once_and_first(serving):
    live = serving(calls)
    for more in ({}, {"tools": TOOLS}):
        seen = {}
        for event in live.events(n=2, **more)[:-1]:
            for choice in event["choices"]:
                seen.setdefault(choice["index"], []).append("role" in choice["delta"])
        assert seen.keys() == {0, 1}
        assert all(roles[0] and sum(roles) == 1 for roles in seen.values())


def test_log_probabilities_are_numbers(serving):
    """Infinity and NaN are not JSON; half a character has its bytes."""
    half = "春".encode()[:2]
    top = (LogProb(1, b"a", float("-inf")), LogProb(2, half, float("nan")), LogProb(3, half[:1], -1.0))
    said = (LogProb(2, half, -0.0), LogProb(3, "春".encode()[2:], float("-inf"), top))
    live = serving(lambda request, choice: [Say("春", logprobs=said)])
    first, second = live.chat(logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"]["content"]
    assert bytes(first["bytes"] + second["bytes"]).decode() == "春"
    assert second["logprob"] == -9999.0
    assert [entry["logprob"] for entry in second["top_logprobs"]] == [-9999.0, -9999.0, -1.0]
    lists = live.complete(logprobs=3).json()["choices"][0]["logprobs"]
    assert lists["tokens"] == ["bytes:\\xe6\\x98", "bytes:\\xa5"] and lists["text_offset"] == [0, 0]
    assert lists["top_logprobs"][1] == {"a": -9999.0, "bytes:\\xe6\\x98": -9999.0, "bytes:\\xe6": -1.0}
    live.events(logprobs=True, top_logprobs=3)  # whose JSON is read strictly


def test_characters_pass_as_they_are(serving):
    """A literal U+FFFD survives; what some clients take for line ends does not break a frame."""
    text = "修复🌍\ufffd a\u2028b\u2029c\x85d\x0be\r\nf \\ud800"
    live = serving(lambda request, choice: list(text))
    assert live.chat().json()["choices"][0]["message"]["content"] == text
    events = live.events()
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1]) == text
    with live.http.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True, "max_tokens": 99}) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: {")]  # httpx splits at all of them
    assert "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines) == text
