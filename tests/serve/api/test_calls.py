"""Calls in what a model writes, however it is cut into pieces."""

import json
import random

import pytest

from mengya.serve.api.calls import Called, CallFinder

CALL = '<tool_call>\n{"name": "weather", "arguments": {"城市": "北京"}}\n</tool_call>'
WEATHER = ("weather", {"城市": "北京"})


def found(text, cuts=None, **options):
    """[text or (name, arguments)], neighbouring texts joined."""
    finder = CallFinder({"weather", "time"}, **options)
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)] if cuts is not None else [text]
    items = [item for piece in pieces for item in finder.feed(piece)] + finder.end()
    joined = []
    for item in items:
        if isinstance(item, Called):
            joined.append((item.name, json.loads(item.arguments)))
        elif joined and isinstance(joined[-1], str):
            joined[-1] += item
        else:
            joined.append(item)
    assert finder.count == sum(isinstance(item, Called) for item in items)
    return joined


LIST = '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'
CASES = [
    ("", []),
    ("你好。", ["你好。"]),
    ("  你好。\n\n", ["  你好。\n\n"]),
    (CALL, [WEATHER]),
    (f"我查一下。\n\n{CALL}", ["我查一下。", WEATHER]),
    (f"{CALL}\n{CALL}\n\n", [WEATHER, WEATHER]),
    (f"{CALL}\n\n好了。", [WEATHER, "好了。"]),
    (CALL.removesuffix("</tool_call>"), [WEATHER]),
    ('<tool_call>{"name": "time"}</tool_call>', [("time", {})]),
    ('<tool_call>{"name": "time", "arguments": "{}"}</tool_call>', [("time", {})]),
    ('<tool_call>{"name": "time", "arguments": null}</tool_call>', [("time", {})]),
    ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>!', [("f", {"a": "</tool_call>"}), "!"]),
    ("<tool_call>北京</tool_call>", ["<tool_call>北京</tool_call>"]),
    ("<tool_call>{</tool_call> 然后", ["<tool_call>{</tool_call> 然后"]),
    ('<tool_call>{"name": "time", "arguments": {"a', ['<tool_call>{"name": "time", "arguments": {"a']),
    (LIST, [LIST]),
    ("1 < 2 <tool", ["1 < 2 <tool"]),
    ("a <tool_box> b", ["a <tool_box> b"]),
    (f"<tool_call>x</tool_call>{CALL}", ["<tool_call>x</tool_call>", WEATHER]),
    ('[TOOL_CALLS] [{"name": "time"}, {"name": "weather", "arguments": {"城市": "北京"}}]', [("time", {}), WEATHER]),
    ('[TOOL_CALLS]weather[ARGS]{"城市": "北京"}', [WEATHER]),
    ('[TOOL_CALLS]weather{"城市": "北京"}', [WEATHER]),
    ("[TOOL_CALLS] none", ["[TOOL_CALLS] none"]),
    ('{"name": "weather", "parameters": {"城市": "北京"}}', [WEATHER]),
    ('<|python_tag|>{"type": "function", "name": "weather", "parameters": {"城市": "北京"}}', [WEATHER]),
    ('{"name": "李", "age": 3}', ['{"name": "李", "age": 3}']),
    ('{"name": "another", "parameters": {}}', ['{"name": "another", "parameters": {}}']),
    ('{"城市": "北京"}', ['{"城市": "北京"}']),
    ("{", ["{"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[str(i) for i in range(len(CASES))])
def test_calls_are_found_wherever_the_text_is_cut(text, expected):
    assert found(text) == expected
    assert found(text, list(range(1, len(text)))) == expected
    for seed in range(20):
        some = random.Random(seed)
        cuts = sorted(some.sample(range(len(text) + 1), min(len(text), some.randrange(6))))
        assert found(text, cuts) == expected, cuts


def test_text_is_not_held_longer_than_it_must_be():
    finder = CallFinder({"weather"})
    assert finder.feed("你好") == ["你好"]
    assert finder.feed("，<too") == ["，"]
    assert finder.feed("th>") == ["<tooth>"]
    assert CallFinder({"weather"}).feed('{"心情": "开心", "天气": "晴", "地点": "北京的一个公园", "x": 1') != []


def test_only_so_many():
    assert found(CALL + CALL + "好", most=1) == [WEATHER]


def test_an_answer_that_is_one_call():
    text = '{"name": "weather", "arguments": {"城市": "北京"}}'
    assert found(text, [3, 9], whole=True) == [WEATHER]
    assert found(text[:-3], whole=True) == [text[:-3]]
