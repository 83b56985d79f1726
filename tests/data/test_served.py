"""Conversations as servers, reasoning models and columnar files write them."""

import json
from pathlib import Path
from typing import Any

import pytest

from mengya.data.conversations import parse_conversation
from mengya.data.fields import Notes
from mengya.data.preferences import parse_preference
from mengya.data.readers import read_rows


def user(said: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": said, **more}


def bot(said: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": said, **more}


def tool(said: str) -> dict[str, Any]:
    return {"role": "tool", "content": said}


LOOK = bot(None, tool_calls=[{"function": {"name": "look", "arguments": {}}}])
CALL = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
REPORTED = [{"type": "tool_result", "content": "1"}, {"type": "text", "text": "and?"}]
SHAPES: dict[str, tuple[Any, list[str]]] = {
    "trl#6361: the mark before the thought stood in the prompt": (
        {"messages": [user("2+2?"), bot("It is 4.\n</think>\n\n4")]},
        ["2+2?", "<think>\nIt is 4.\n</think>\n\n4"],
    ),
    "gpt-oss: a thought is a message": (
        {"messages": [user("?"), bot("hm", channel="analysis"), bot("yes", channel="final")]},
        ["?", "<think>\nhm\n</think>\nyes"],
    ),
    "a log: the answer is inside what the server gave": (
        {"request": {"messages": [user("?")]}, "response": {"body": {"choices": [{"message": bot("yes")}]}}},
        ["?", "yes"],
    ),
    "LlamaFactory#10178: several results in a row, told apart as when the model is used": (
        {"messages": [user("?"), LOOK, tool("1"), tool("2"), bot("3")]},
        ["?", CALL, "1", "2", "3"],
    ),
    "anthropic: a result comes before what the user says with it": (
        {"messages": [user("?"), LOOK, user(REPORTED), bot("2")]},
        ["?", CALL, "1", "and?", "2"],
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_servers_and_reasoning_models_write(name: str) -> None:
    row, expected = SHAPES[name]
    assert [message["content"] for message in parse_conversation(row)] == expected


def test_thoughts_in_messages_of_their_own_can_be_left_out() -> None:
    row, _ = SHAPES["gpt-oss: a thought is a message"]
    assert [message["content"] for message in parse_conversation(row, reasoning=False)] == ["?", "yes"]


def test_fields_that_columnar_files_add_are_not_taught(tmp_path: Path) -> None:
    """axolotl#2909: in a column of objects each has the fields of all, and those that it lacks are null."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    offered = [{"name": name, "parameters": {key: {"type": "int"}}} for name, key in ("fx", "gy")]
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": 2}}]
    turns = [user("?"), {"role": "assistant", "tool_calls": calls}]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns, "tools": offered}]), tmp_path / "t.parquet")
    (filled,) = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert filled["tools"][0]["parameters"] == {"x": {"type": "int"}, "y": None}
    (row,) = read_rows(tmp_path / "t.parquet")
    said = [message["content"] for message in parse_conversation(row.value)]
    assert all(json.dumps(one) in said[0] for one in offered) and "null" not in "".join(said)
    assert "null" not in parse_conversation(filled)[0]["content"]  # what was exported to JSON before


def test_what_cannot_be_kept_is_told() -> None:
    """Flags for parts of a turn; fields whose names differ in case alone; ms-swift#7184: several answers."""
    flags = [{"begin_offset": 0, "end_offset": 0, "train": False}]
    with pytest.raises(ValueError, match="only parts are to be learnt"):
        parse_conversation({"messages": [user("?"), bot("ab", train_detail=flags)]})
    notes = Notes()
    parse_conversation({"Question": "one", "question": "two", "answer": "three"}, notes)
    assert notes.not_read == {"question"}
    with pytest.raises(ValueError, match="several answers on one side of a pair"):
        parse_preference({"messages": [user("1"), bot("2"), user("3"), bot("4")], "rejected_response": ["5", "6"]})
