"""Preferences: every published shape comes out as prompt, chosen and rejected, and what is no pair says why."""

import json
from pathlib import Path
from typing import Any

import pytest

from mengya.data.fields import Notes
from mengya.data.intake import Intake
from mengya.data.preferences import Preference, parse_preference, read_preferences
from mengya.data.tools import offer

REAL = Path(__file__).parents[2] / "../shared/data/preference"


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def bot(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "守则"}
HISTORY = [user("问一"), bot("答一")]
PAIR = {"chosen": "好", "rejected": "坏"}
ONE = Preference([user("问")], "好", "坏")
LONG = Preference([*HISTORY, user("问")], "好", "坏")

SHAPES: dict[str, tuple[dict[str, Any], Preference]] = {
    "strings": ({"prompt": "问", **PAIR}, ONE),
    "history": ({"prompt": "问", "history": [["问一", "答一"]], **PAIR}, LONG),
    "the question was asked before": (
        {"prompt": "问一", "history": [["问一", "答一"]], **PAIR},
        Preference([*HISTORY, user("问一")], "好", "坏"),
    ),
    "prompt messages": ({"prompt": [*HISTORY, user("问")], **PAIR}, LONG),
    "messages everywhere": ({"prompt": [user("问")], "chosen": [bot("好")], "rejected": [bot("坏")]}, ONE),
    "whole conversations": (
        {"chosen": [*HISTORY, user("问"), bot("好")], "rejected": [*HISTORY, user("问"), bot("坏")], "score": 1},
        LONG,
    ),
    "whole conversations and a prompt": (
        {"prompt": "问", "chosen": [SYSTEM, user("问"), bot("好")], "rejected": [SYSTEM, user("问"), bot("坏")]},
        Preference([SYSTEM, user("问")], "好", "坏"),
    ),
    # huggingface/trl#2131 joins a prompt and whole conversations, which have it once more
    "a prompt that says more than whole conversations": (
        {"prompt": [SYSTEM, user("问")], "chosen": [user("问"), bot("好")], "rejected": [user("问"), bot("坏")]},
        Preference([SYSTEM, user("问")], "好", "坏"),
    ),
    "a prompt with earlier turns": (
        {"prompt": [*HISTORY, user("问")], "chosen": [user("问"), bot("好")], "rejected": [user("问"), bot("坏")]},
        LONG,
    ),
    "a prompt that is the first question": (
        {
            "prompt": "问一",
            "chosen": [*HISTORY, user("问"), bot("好")],
            "rejected": [*HISTORY, user("问"), bot("坏")],
        },
        LONG,
    ),
    "lists of one answer": ({"prompt": "问", "chosen": ["好"], "rejected": ["坏"]}, ONE),
    "generations and ratings as text": (
        {"instruction": "问", "generations": ["坏", "好"], "ratings": ["3.5", "4"]},
        ONE,
    ),
    "system beside whole conversations": (
        {"system": "守则", "chosen": [user("问"), bot("好")], "rejected": [user("问"), bot("坏")]},
        Preference([SYSTEM, user("问")], "好", "坏"),
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "system", "value": "守则"}, {"from": "human", "value": "问"}],
            "chosen": {"from": "gpt", "value": "好"},
            "rejected": {"from": "gpt", "value": "坏"},
        },
        Preference([SYSTEM, user("问")], "好", "坏"),
    ),
    "conversations and strings": ({"conversations": [{"from": "human", "value": "问"}], **PAIR}, ONE),
    "ranked": ({"instruction": "问", "input": "", "output": ["好", "中", "坏"], "history": []}, ONE),
    "reward model": ({"question": "问", "response_chosen": "好", "response_rejected": "坏", "system": ""}, ONE),
    "untidy": ({"Prompt": " 问\r\n", "Chosen": "好\x00\n", "Rejected": " 坏"}, ONE),
    "tools": (
        {
            "conversations": [
                {"from": "human", "value": "问"},
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "晴"},
            ],
            "tools": '[{"name": "w"}]',
            **PAIR,
        },
        Preference(
            [
                {"role": "system", "content": offer('[{"name": "w"}]')},
                user("问"),
                bot("{}"),
                {"role": "tool", "content": "晴"},
            ],
            *("好", "坏"),
        ),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name: str) -> None:
    value, expected = SHAPES[name]
    before = json.dumps(value)
    assert parse_preference(value) == expected
    assert json.dumps(value) == before


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("text", "not an object"),
        ({"messages": [*HISTORY], "label": True}, "KTO"),
        ({"prompt": "问", "completion": "好", "label": False}, "KTO"),
        ({"prompt": "问", "response": "好"}, "no chosen and rejected"),
        ({"prompt": "问", "chosen": "好"}, "missing"),
        ({"prompt": "问", "chosen": "好", "rejected": ""}, "an empty answer"),
        ({"prompt": "问", "chosen": "好", "rejected": " 好\n"}, "the same"),
        ({"instruction": "问", "output": ["好"]}, "fewer than two"),
        ({"prompt": "问", "chosen": "好", "rejected": ["坏", "差"]}, "several answers on one side"),
        ({"prompt": "问", "responses": ["好", "坏"], "scores": ["高", "低"]}, "without one number for each"),
        ({"instruction": "问", "output": ["好", "好"]}, "the same"),
        ({"prompt": "", **PAIR}, "an empty question"),
        ({**PAIR}, "no field of a known"),
        ({"conversations": HISTORY, **PAIR}, "does not end with a question"),
        ({"chosen": [user("一"), bot("好")], "rejected": [user("二"), bot("坏")]}, "differ before"),
        ({"chosen": [user("问"), bot("好")], "rejected": [user("问")]}, "does not end with the assistant"),
    ],
)
def test_what_is_no_pair_says_why(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_preference(value)


def test_a_prompt_that_is_used_counts_as_read() -> None:
    whole = {"chosen": [*HISTORY, user("问"), bot("好")], "rejected": [*HISTORY, user("问"), bot("坏")]}
    prompts = {"问一": set(), "别的": {"prompt"}}
    for prompt, not_read in prompts.items():
        notes = Notes()
        assert parse_preference({"prompt": prompt, **whole}, notes) == LONG
        assert notes.not_read == not_read


def test_broken_rows_are_put_aside(tmp_path: Path) -> None:
    rows = [{"prompt": "问", **PAIR}, {"prompt": "问", "completion": "好", "label": True}, {"prompt": "问", **PAIR}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1), "utf-8")
    with Intake(tmp_path / "q.jsonl") as quarantine:
        assert [row.value for row in read_preferences(tmp_path / "a.json", quarantine)] == [ONE, ONE]
    assert json.loads((tmp_path / "q.jsonl").read_text("utf-8"))["line"] == 7
    assert "1 one answer with a label" in quarantine.summary()


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data are not beside this repository")
def test_real_files(tmp_path: Path) -> None:
    counts = {}
    for path in sorted(REAL.iterdir()):
        with Intake(tmp_path / "q.jsonl") as quarantine:
            pairs = [row.value for row in read_preferences(path, quarantine)]
        assert all(pair.prompt[-1]["role"] in ("user", "tool") and pair.chosen != pair.rejected for pair in pairs)
        counts[path.name.split(".")[0].split("__")[0]] = (len(pairs), quarantine.quarantined)
    assert counts == {
        "dpo_en_llamafactory": (150, 0),
        "dpo_zh_medicalgpt_500": (500, 0),
        "kto_en_llamafactory": (0, 200),
        "oaast_pairs_zh": (533, 0),
        "oaast_rm_zh_ranked": (533, 3),
        "toolcall_dpo_zh_medicalgpt": (11, 0),
    }
