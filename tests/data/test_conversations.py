"""Conversations: every published shape comes out as one, and what holds none says why."""

import gzip
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mengya.data.conversations import parse_conversation, read_conversations
from mengya.data.intake import Intake
from mengya.data.tools import call, offer
from mengya.data.turns import SPEAKERS

REAL = Path(__file__).parents[2] / "../shared/data/sft"
MARKS = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def talk(*turns: str) -> list[dict[str, str]]:
    """talk("u:你好", "a:你好！") as messages."""
    return [{"role": MARKS[turn[0]], "content": turn[2:]} for turn in turns]


ONE = talk("u:问一", "a:答一")
TWO = talk("u:问一", "a:答一", "u:问二", "a:答二")


def named(first: str, second: str, role: str = "role", content: str = "content") -> list[dict[str, str]]:
    return [{role: (first, second)[i % 2], content: message["content"]} for i, message in enumerate(TWO)]


SHAPES: dict[str, tuple[Any, list[dict[str, str]]]] = {
    "messages": ({"messages": TWO}, TWO),
    "messages by themselves": (TWO, TWO),
    "a list around the list": ({"conversations": [TWO]}, TWO),
    "messages in a cell": ({"messages": json.dumps(TWO)}, TWO),
    "sharegpt": ({"conversations": named("human", "gpt", "from", "value")}, TWO),
    "capitals": ({"Messages": named("User", "ASSISTANT")}, TWO),
    "counselling": ({"messages": named("client", "counselor")}, TWO),
    "task-oriented": ({"dialogue": named("usr", "sys")}, TWO),
    "system answers": ({"dialogue": named("USER", "SYSTEM", "speaker", "utterance")}, TWO),
    "chinese roles": ({"对话": named("问", "答", "角色", "内容")}, TWO),
    "unknown names": ({"conversation": named("小明", "小红")}, TWO),
    "one unknown name": ({"conversation": named("user", "萌芽")}, TWO),
    "one unknown asker": ({"conversation": named("访客甲", "assistant")}, TWO),
    "no names": ({"messages": [{"message": m["content"], "attrs": []} for m in TWO], "name": "x"}, TWO),
    "keyed pairs": (
        {"conversation": [{"human": "问一", "assistant": "答一"}, {"human": "问二", "assistant": "答二"}]},
        TWO,
    ),
    "pairs": ([["问一", "答一"], ["问二", "答二"]], TWO),
    "pair": (["问一", "答一"], ONE),
    "alternating strings": ({"dialog": ["问一", "答一", "问二", "答二", "再见"]}, TWO),
    "alpaca": ({"instruction": "问一", "input": "", "output": "答一"}, ONE),
    "alpaca with input": ({"instruction": "翻译", "input": "hi", "output": "嗨"}, talk("u:翻译\nhi", "a:嗨")),
    "alpaca, all of it": (
        {"system": "守则", "instruction": "问二", "input": None, "output": "答二", "history": [["问一", "答一"]]},
        [*talk("s:守则"), *TWO],
    ),
    "empty history": ({"input": "", "history": "", "instruction": "问一", "output": "答一"}, ONE),
    "history in a cell": ({"instruction": "问二", "output": "答二", "history": '[["问一", "答一"]]'}, TWO),
    "history of messages": ({"query": "问二", "response": "答二", "history": ONE}, TWO),
    "history of named strings": (
        {"query": "问一", "laws": ["x"], "history": ["[客户] 问一", "[律师] 答一", "[客户] 问二", "[律师]：答二"]},
        TWO,
    ),
    "strings named by colons": (["用户：问一", "助手: 答一", "用户：问二", "助手：答二"], TWO),
    "prompt and response": ({"prompt": "问一", "response": "答一"}, ONE),
    "prompt messages": ({"prompt": talk("u:问一"), "completion": talk("a:答一")}, ONE),
    "question and answer": ({"id": 3, "question": "问一", "answer": "答一"}, ONE),
    "query and response": ({"Query": "问一", "Response": "答一"}, ONE),
    "input and output": ({"input": "问一", "output": "答一", "type": "x"}, ONE),
    "input and target": ({"input": "问一", "target": "答一"}, ONE),
    "chinese fields": ({"问题": "问一", "答案": "答一"}, ONE),
    "chinese alpaca": ({"指令": "翻译", "输入": "hi", "输出": "嗨"}, talk("u:翻译\nhi", "a:嗨")),
    "number": ({"question": "1+1=?", "answer": 2}, talk("u:1+1=?", "a:2")),
    "list and an answer beside it": ({"messages": TWO, "answer": "B"}, TWO),
    "list that wants its answer": ({"messages": TWO[:3], "answer": "答二"}, TWO),
    "content parts": ([{"role": "user", "content": [{"type": "text", "text": "问一"}]}, ONE[1]], ONE),
    "placeholders": (
        {"instruction": "hi", "output": "I am {{name}} by {{author}}"},
        talk("u:hi", "a:I am {{name}} by {{author}}"),
    ),
    "tools": (
        {
            "conversations": [
                {"from": "human", "value": "天气？"},
                {"from": "function_call", "value": '{"name": "w"}'},
                {"from": "observation", "value": "晴"},
                {"from": "gpt", "value": "今天晴。"},
            ],
            "tools": '[{"name": "w"}]',
        },
        talk("s:" + offer([{"name": "w"}]), "u:天气？", "a:" + call({"name": "w"}), "t:晴", "a:今天晴。"),
    ),
    "openai tools": (
        {
            "messages": [
                *talk("s:守则", "u:天气？"),
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w"}}]},
                *talk("t:晴", "a:今天晴。"),
            ],
            "tools": [],
        },
        talk("s:守则", "u:天气？", "a:" + call({"name": "w"}), "t:晴", "a:今天晴。"),
    ),
    "gemini": (
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "守则"}]},
            "contents": [
                {"role": "user", "parts": [{"text": "天气？"}]},
                {
                    "role": "model",
                    "parts": [{"text": "想想", "thought": True}, {"functionCall": {"name": "w", "args": {}}}],
                },
                {"role": "function", "parts": [{"functionResponse": {"name": "w", "response": {"t": 3}}}]},
                {"role": "model", "parts": [{"text": "今天"}, {"text": "三度。"}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "w", "response": {"t": 4}}}]},
                {"role": "model", "parts": [{"text": "四度。"}]},
            ],
        },
        talk(
            *(
                "s:守则",
                "u:天气？",
                "a:<think>\n想想\n</think>\n\n" + call({"name": "w"}),
                't:{"t": 3}',
                "a:今天\n三度。",
            ),
            *('t:{"t": 4}', "a:四度。"),
        ),
    ),
    "moss": (
        {
            "meta_instruction": "守则",
            "num_turns": 2,
            "chat": {
                "turn_1": {
                    "Human": "<|Human|>: 问一<eoh>\n",
                    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
                    "Commands": "<|Commands|>: None<eoc>\n",
                    "Tool Responses": "<|Results|>: None<eor>\n",
                    "MOSS": "<|MOSS|>: 答一<eom>\n",
                },
                "turn_2": {
                    "Human": "<|Human|>: 天气？<eoh>\n",
                    "Commands": '<|Commands|>: Search("天气")<eoc>\n',
                    "Tool Responses": "<|Results|>: 晴<eor>\n",
                    "MOSS": "<|MOSS|>: 今天晴。<eom>\n",
                },
            },
        },
        talk("s:守则", "u:问一", "a:答一", "u:天气？", 'a:Search("天气")', "t:晴", "a:今天晴。"),
    ),
    "moss, as one text": (
        {"plain_text": "[Human]: 问一<eoh> [MOSS]: 答一<eoa> [Human]: 问二<eoh> [MOSS]: 答二<eoa> "},
        TWO,
    ),
    "glaive": (
        {
            "system": "SYSTEM: 守则",
            "chat": "USER: 天气？\n\n\nASSISTANT: 我看看。 <functioncall> "
            """{"name": "w", "arguments": '{"city": "King\\'s"}'} <|endoftext|>\n\n\nFUNCTION RESPONSE: 晴\n\n\n"""
            "ASSISTANT: 今天晴。 <|endoftext|>\n\n\nUSER: 谢谢\n\n\nASSISTANT: 不谢 <|endoftext|>",
        },
        talk(
            *("s:守则", "u:天气？", "a:我看看。\n" + call({"name": "w", "arguments": {"city": "King's"}}), "t:晴"),
            *("a:今天晴。", "u:谢谢", "a:不谢"),
        ),
    ),
    "untidy": (
        {
            "system": "",
            "messages": talk("a:欢迎", "s:守则\x00", "u: 问", "u:一\r\n", "a:", "a:答一\x1b ", "u:谢谢", "s:完"),
        },
        talk("s:守则", "u:问\n一", "a:答一"),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name: str) -> None:
    value, expected = SHAPES[name]
    before = json.dumps(value)
    assert parse_conversation(value) == expected
    assert json.dumps(value) == before  # the row still is what it was


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("text", "plain text"),
        ([], "no answer"),
        ({}, "no field of a known"),
        ({"text": "x"}, "no field of a known"),
        ({"instruction": "", "output": ""}, "an empty question"),
        ({"messages": []}, "an empty question"),
        ({"instruction": "x", "output": " "}, "no answer"),
        ({"instruction": "x"}, "no answer"),
        ({"messages": talk("u:x")}, "no answer"),
        ({"messages": talk("a:x")}, "no answer"),
        ({"messages": talk("s:x", "a:y")}, "no answer"),
        ({"instruction": "x", "output": ["a", "b"]}, "preference"),
        ({"instruction": "x", "output": "y", "history": "chat"}, "history"),
        ({"messages": [1, 2]}, "neither a message nor a pair"),
        ({"messages": [{"x": 1}]}, "without content"),
        (
            {"messages": [{"role": "x", "content": "1"}, {"role": "y", "content": "2"}, {"role": "z", "content": "3"}]},
            "role",
        ),
        ({"messages": [{"role": "user", "content": "1"}, {"content": "2"}]}, "without a role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not text"),
        ({"instruction": {"a": 1}, "output": "y"}, "not text"),
    ],
)
def test_what_holds_no_conversation_says_why(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_conversation(value)


def test_any_sequence_of_turns_comes_out_in_order() -> None:
    noise = random.Random(0)
    refused = 0
    for _ in range(2000):
        turns = []
        for i in range(noise.randrange(1, 9)):
            name = noise.choice([name for name, role in SPEAKERS.items() if role != "system"])
            turns.append({"from": name, "value": noise.choice([f"<{i}>", f" <{i}>\x00\n", f"<{i}>", " "])})
        if not any(SPEAKERS[t["from"]] == "assistant" for t in turns):
            continue
        try:
            messages = parse_conversation({"conversations": turns})
        except ValueError:
            refused += 1
            continue
        roles = [message["role"] for message in messages]
        assert roles[0] == "user" and roles[-1] == "assistant"
        assert all(one != two or one == "tool" for one, two in pairwise(roles))
        said = "\n".join(message["content"] for message in messages).split("\n")
        # Nothing is lost or moved between the first question and the last answer.
        whole = [(SPEAKERS[t["from"]], t["value"].strip("\x00\n ")) for t in turns if t["value"].strip()]
        first = [role for role, _ in whole].index("user")
        last = max(i for i, (role, _) in enumerate(whole) if role == "assistant")
        assert said == [content for _, content in whole[first : last + 1]]
        assert parse_conversation(messages) == messages
    assert refused < 1200  # else the test would show little


def test_broken_rows_are_put_aside(tmp_path: Path) -> None:
    rows = [{"messages": ONE}, {"messages": ONE[:1]}, {"prompt": "问一", "response": "答一"}]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join([*map(json.dumps, rows), "{"]).encode()))
    with Intake(tmp_path / "q.jsonl") as quarantine:
        found = [(row.origin[1], row.value) for row in read_conversations(str(path), quarantine)]
        assert found == [("1", ONE), ("3", ONE)]
    aside = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text("utf-8").splitlines()]
    assert [(row["file"], row["line"]) for row in aside] == [(str(path), 2), (str(path), 4)]
    assert aside[0]["reason"] == "no answer after a question"


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data are not beside this repository")
def test_real_files_lose_next_to_nothing(tmp_path: Path) -> None:
    for path in sorted(REAL.iterdir()):
        with Intake(tmp_path / "q.jsonl") as quarantine:
            conversations = [row.value for row in read_conversations(path, quarantine)]
        assert quarantine.quarantined <= 1 and len(conversations) > 50, (path.name, quarantine.summary())
        turns = sum(map(len, conversations)) / len(conversations)
        assert (turns > 8) == any(name in path.name for name in ("crosswoz", "kdconv", "sharegpt", "smile"))
        if "identity" in path.name:
            assert any("{{name}}" in conversation[-1]["content"] for conversation in conversations)
