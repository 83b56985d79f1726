"""Rows of known shapes, mutated: no traceback, and every row is used, read in part, or put aside with a reason.

`pytest tests/data/test_fuzz.py --fuzz-inputs 20000` tries more of them, `--fuzz-seed` others.
"""

import bz2
import copy
import csv
import gzip
import io
import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
import zstandard

from mengya.data.conversations import read_conversations
from mengya.data.documents import read_documents
from mengya.data.intake import Intake
from mengya.data.preferences import read_preferences
from mengya.data.readers import Rejected, read_rows

WORDS = [
    "你好",
    "今天天气很好。",
    "hello",
    "<|im_end|>",
    "\u2028",
    "😀",
    "\x00",
    " ",
    "",
    "1",
    "null",
    "</s>",
    '"',
    "\\",
    "[{",
    "nan",
]
TALK = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
SHARE = [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "你好！", "loss": True}]
SHAPES: list[Any] = [
    {"text": "今天天气很好，我们去公园。", "url": "http://a.example/b", "meta": {"id": 1}},
    {"title": "题", "段落": [{"行号": 1, "内容": "一句。"}, {"行号": 2, "内容": "两句。"}], "时间": "20210101"},
    {"messages": TALK},
    {"conversations": SHARE, "tools": '[{"name": "f"}]', "system": "守则"},
    {"instruction": "翻译", "input": "cat", "output": "猫", "history": [["问", "答"]]},
    {"question": "几？", "context": "三加四。", "answers": {"text": ["七"], "answer_start": [0]}},
    {"conversation": [{"system": "", "input": "一", "output": "二"}, {"input": "三", "output": "四"}]},
    {
        "messages": [
            *TALK,
            {"role": "tool", "content": {"a": 1}},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        ]
    },
    {"messages": json.dumps(TALK)},
    {"conversations": {"from": ["human", "gpt"], "value": ["一", "二"]}},
    {"data": ["一", "二", "三", "四"]},
    ["一", "二"],
    TALK,
    {"prompt": "你好", "chosen": "你好！", "rejected": "哦。"},
    {"chosen": TALK, "rejected": [*TALK[:1], {"role": "assistant", "content": "哦。"}], "score": 1.0},
    {"messages": TALK, "rejected_response": "哦。"},
    {"chosen": "\n\nHuman: 一\n\nAssistant: 二", "rejected": "\n\nHuman: 一\n\nAssistant: 三"},
    {"instruction": "一", "output": ["好", "中", "坏"], "scores": [3, 2, 1]},
    {"response_0": "一", "response_1": "二", "prompt": "问", "better_response_id": 0},
    {"text": "王伟在海淀", "label": {"name": {"王伟": [[0, 1]]}, "address": {"海淀": [[3, 4]]}}},
    {"text": "王伟在海淀", "entities": [{"label": "PER", "start_offset": 0, "end_offset": 2}], "Comments": []},
    {"tokens": ["王", "伟"], "ner_tags": [1, 2], "tag_names": ["O", "B-PER", "I-PER"]},
]
READERS = {
    "corpus": lambda path, intake: read_documents(path, None, intake),
    "chat": read_conversations,
    "pairs": read_preferences,
}


def scalar(noise: random.Random) -> Any:
    odd = [None, True, False, 0, 7.0, float("nan"), float("inf"), 10**30, -1.5, [], {}, [[]], [{}], {"": None}]
    return noise.choice([*odd, *WORDS, "".join(noise.choices(WORDS, k=5)), "=" * 3000])


def places(value: Any, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = inner if len(path) < 60 else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def mutated(value: Any, noise: random.Random) -> Any:
    value = copy.deepcopy(value)
    for _ in range(noise.randrange(0, 4)):
        path = noise.choice(places(value))
        if not path:
            if noise.random() < 0.1:
                return noise.choice([scalar(noise), [value], {"data": value}, json.dumps(value), [value, value]])
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        key, old = path[-1], holder[path[-1]]
        match noise.randrange(8):
            case 0:
                holder[key] = scalar(noise)
            case 1:
                holder[key] = noise.choice(
                    [[old], {"x": old}, {"text": old}, [old, old], str(old), json.dumps(old), repr(old)]
                )
            case 2:
                del holder[key]
            case 3 if isinstance(holder, dict):
                name = noise.choice(
                    [
                        f"{key}_zh",
                        str(key).upper(),
                        f" {key}",
                        "未知",
                        "".join(noise.choices(string.ascii_lowercase, k=4)),
                    ]
                )
                holder[name] = holder.pop(key)
            case 4 if isinstance(holder, dict):
                holder[
                    noise.choice(["id", "loss", "weight", "images", "label", "tools", "reasoning_content", "name"])
                ] = scalar(noise)
            case 5:
                holder[key] = old[: noise.randrange(len(old) + 1)] if isinstance(old, str | list) else old
            case 6 if isinstance(holder, list):
                noise.shuffle(holder)
            case 7:
                for _ in range(noise.choice([3, 40, 200])):
                    old = [old]
                holder[key] = old
    return value


def written(rows: list[Any], noise: random.Random) -> tuple[str, bytes]:
    """(file name, bytes) of a file that holds the rows, perhaps damaged."""
    layout = noise.choice(["lines", "lines", "lines", "array", "indented", "key", "csv", "repr", "txt", "tags"])
    dump = lambda value, **more: json.dumps(value, ensure_ascii=noise.random() < 0.5, **more)  # noqa: E731
    name = noise.choice(["a.jsonl", "a.json"])
    if layout == "lines":
        text = "".join(f"{dump(row)}\n" for row in rows)
    elif layout in ("array", "indented"):
        text = dump(rows, indent=noise.choice([0, 2]) if layout == "indented" else None)
    elif layout == "key":
        text = dump({noise.choice(["data", "train", "x"]): rows, "version": 1})
    elif layout in ("csv", "repr"):
        objects = [row for row in rows if isinstance(row, dict)]
        names = sorted({str(name) for row in objects for name in row})
        file = io.StringIO()
        table = csv.writer(file)
        table.writerow(names)
        form = repr if layout == "repr" else dump
        cell = lambda value: value if isinstance(value, str) else form(value)  # noqa: E731
        table.writerows([[cell(row.get(name, "")).replace("\x00", "") for name in names] for row in objects])
        name, text = "a.csv", file.getvalue()
    elif layout == "tags":
        tags = ["O", "B-PER", "I-PER", "E-LOC", "S-", "X-A", "B", "", "\n"]
        lines = [
            f"{noise.choice([*WORDS, '王', '0'])}{noise.choice(' ' + chr(9))}{noise.choice(tags)}" for _ in range(30)
        ]
        name, text = noise.choice(["a.bio", "a.conll", "a.txt"]), "\n".join(lines)
    else:
        name, text = "a.txt", "\n\n".join(map(str, rows))
    data = text.encode(noise.choice(["utf-8", "utf-8", "utf-8-sig", "gb18030", "utf-16"]), "replace")
    if noise.random() < 0.3:
        at = noise.randrange(len(data) + 1)
        data = (
            data[:at]
            + noise.choice([b"", b"\xff", b"\xe4\xbd", b"\n", b'"', b"{", b"\x00" * 40])
            + data[at + noise.randrange(9) :]
        )
    if noise.random() < 0.2:
        data = data[: noise.randrange(len(data) + 1)]
    packed = noise.choice(["", "", "", "", ".gz", ".zst"])
    if packed:
        data = gzip.compress(data) if packed == ".gz" else zstandard.compress(data)
        if noise.random() < 0.3:
            data = noise.choice([data[: noise.randrange(len(data) + 1)], bz2.compress(data), data + b"junk"])
    return name + packed, data


@pytest.fixture
def inputs(pytestconfig) -> tuple[int, int]:
    return pytestconfig.getoption("--fuzz-inputs"), pytestconfig.getoption("--fuzz-seed")


@pytest.mark.parametrize("kind", READERS)
def test_every_row_is_used_or_put_aside(kind: str, inputs: tuple[int, int], tmp_path: Path) -> None:
    number, seed = inputs
    noise = random.Random(f"{kind} {seed}")
    for trial in range(number):
        rows = [mutated(noise.choice(SHAPES), noise) for _ in range(noise.randrange(1, 6))]
        name, data = written(rows, noise)
        path = tmp_path / name
        path.write_bytes(data)
        with Intake(tmp_path / "quarantine.log") as intake:
            used = {
                getattr(row, "origin", None) or (row.source, row.id.split("/")[0])
                for row in READERS[kind](path, intake)
            }
        counts = intake.of(str(path))
        expected = list(read_rows(path))
        where = f"{kind}, seed {seed}, trial {trial}: {data[:300]!r}"
        assert counts.rows == len(expected), where
        assert counts.used + counts.partly_read == len(used), where
        assert counts.quarantined >= sum(isinstance(row, Rejected) for row in expected), where
        assert counts.quarantined == intake.reasons.total(), where
        for reason in intake.reasons:
            assert reason and "Error" not in reason and "object has no attribute" not in reason, where
        path.unlink()


def test_rows_that_cannot_hold_what_is_asked_name_the_right_cause(tmp_path: Path) -> None:
    causes = {
        "a picture or a sound": {"messages": TALK, "images": ["a.png"]},
        "an unknown role name": {"messages": [*TALK, {"role": "x", "content": "a"}, {"role": "y", "content": "b"}]},
        "no answer after a question": {"messages": TALK[:1]},
        "an empty question": {"instruction": "", "output": "答"},
        "no field of a known conversation shape": {"text": "故事。"},
        "a preference pair": {"prompt": "一", "chosen": "二", "rejected": "三"},
        "several conversations in one row": {"conversations": [TALK, TALK]},
        "several answers in one row": {"instruction": "一", "output": ["二", "三"]},
        "content that is not text": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, TALK[1]]},
        "messages written as text": {"messages": '[{"role": "user", "content": "一'},
        "a weight that is neither": {"messages": [TALK[0], {**TALK[1], "weight": 0.3}]},
    }
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in causes.values()), "utf-8")
    with Intake(tmp_path / "q.jsonl") as intake:
        assert list(read_conversations(path, intake)) == []
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "q.jsonl").read_text("utf-8").splitlines()]
    for cause, reason in zip(causes, reasons, strict=True):
        assert reason.startswith(cause), (cause, reason)
