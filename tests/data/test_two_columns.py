"""Questions and answers in two columns of a Parquet file, in every Arrow type that holds text; and what is learnt."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mengya.data.conversations import parse_conversation, read_conversations
from mengya.data.intake import Intake

PAIRS = [("prompt", "response"), ("question", "answer"), ("instruction", "output"), ("问题", "回答")]
ASKED, ANSWERED = ["问？", None, "x", "", "  "], ["答。", "y", None, "z", "w"]
TYPES = {
    "string": lambda cells: pa.array(cells, pa.string()),
    "large_string": lambda cells: pa.array(cells, pa.large_string()),
    "string_view": lambda cells: pa.array(cells, pa.string_view()),
    "dictionary": lambda cells: pa.array(cells).dictionary_encode(),
    "large dictionary": lambda cells: pa.array(cells, pa.large_string()).dictionary_encode(),
    "binary": lambda cells: pa.array([None if cell is None else cell.encode() for cell in cells], pa.binary()),
    "chunks": lambda cells: pa.chunked_array([cells[:1], cells[1:]], pa.string()),
}


def read(directory, **columns):
    """The conversations, and why rows were put aside."""
    pq.write_table(pa.table(columns), directory / "rows.parquet")
    with Intake(directory / "quarantine.jsonl") as intake:
        rows = [row.value for row in read_conversations(str(directory / "rows.parquet"), intake)]
        return rows, dict(intake.reasons)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("names", PAIRS)
def test_two_columns(tmp_path, names, kind):
    rows, reasons = read(tmp_path, **dict(zip(names, map(TYPES[kind], (ASKED, ANSWERED)), strict=True)))
    assert rows == [[{"role": "user", "content": "问？"}, {"role": "assistant", "content": "答。"}]]
    assert reasons == {"an empty question": 3, "no answer after a question": 1}


def test_cells_that_are_lists(tmp_path):
    """One answer is one; several are for preference training, and none is none."""
    answers = pa.array([["答"], ["一", "二"], [], None], pa.list_(pa.large_string()))
    rows, reasons = read(tmp_path, question=pa.array(list("abcd")), answer=answers)
    assert [[message["content"] for message in row] for row in rows] == [["a", "答"]]
    assert reasons == {"several answers in one row: preference data": 1, "no answer after a question": 2}


@pytest.mark.parametrize("flag", ["loss", "weight", "train", "training", "trainable", "loss_scale"])
@pytest.mark.parametrize("no", [False, 0, 0.0, "false"])
def test_turns_that_are_marked_in_the_data(flag, no):
    """OpenAI and axolotl, ms-swift, XTuner: marks of turns that nobody answers with are of no account."""
    yes = {False: True, "false": "true"}.get(no, 1) if isinstance(no, bool | str) else 1
    talk = [
        {"role": "user", "content": "a", flag: no},
        {"role": "assistant", "content": "b", flag: no},
        {"role": "user", "content": "c", flag: yes},
        {"role": "assistant", "content": "d", flag: yes},
        {"role": "user", "content": "e"},
        {"role": "assistant", "content": "f", flag: None},
    ]
    answers = parse_conversation({"messages": talk})[1::2]
    assert [message.get("supervised", True) for message in answers] == [False, True, True]
    with pytest.raises(ValueError, match="no turn of the assistant is to be learnt"):
        parse_conversation({"messages": talk[:2]})


def test_marks_in_a_column_of_structs(tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    talk += [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}]
    rows, reasons = read(tmp_path, messages=pa.array([talk, talk[:2]]))
    assert [message.get("supervised", True) for message in rows[0]] == [True, False, True, True]
    assert reasons == {"no turn of the assistant is to be learnt": 1}
