"""Questions files: read and checked as a whole; tasks: what they must bring and what their graders may do."""

import dataclasses
import json
from pathlib import Path

import pytest

from mengya.data import schoolbook
from mengya.errors import UserError
from mengya.tasks import TASKS
from mengya.tasks.questions import read_questions
from mengya.tasks.task import Question


def write(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n\n")
    return path


GOOD = {"kind": "fact", "id": "1", "prompt": "天空\u2028是什么颜色？", "answer": "蓝色", "accept": ["蓝"]}


def test_read_questions(tmp_path: Path) -> None:
    plain = {"kind": "addition", "id": "2", "prompt": "1+1", "answer": "2", "extra": "ignored"}
    unnamed = {"kind": "choice", "prompt": "1+1", "choices": ["1", "2"], "answer": "B"}
    read = read_questions(write(tmp_path / "q.jsonl", GOOD, plain, b"", unnamed))
    assert read == [
        Question(TASKS["fact"], "1", GOOD),
        Question(TASKS["addition"], "2", plain),
        Question(TASKS["choice"], "q.jsonl:4", {"id": "q.jsonl:4", **unnamed}),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"{broken", "not a JSON object in UTF-8"),
        (b'{"kind": "\xff"}', "not a JSON object in UTF-8"),
        ([1, 2], "is not an object"),
        (
            {**GOOD, "kind": "riddle"},
            "kind='riddle' is not a task; use one of fact, addition, unknown, identity, first, exact, choice, ",
        ),
        ({**GOOD, "kind": "choise"}, "kind='choise' is not a task; did you mean 'choice'? There are fact, addition"),
        ({**GOOD, "kind": ["fact"]}, "kind=['fact'] is not a task; use one of"),
        ({**GOOD, "prompt": " "}, "prompt=' ' must be a non-empty string"),
        ({**GOOD, "answer": ""}, "answer='' must be a non-empty string"),
        ({**GOOD, "id": 3}, "id=3 must be a non-empty string"),
        ({"kind": "fact"}, "prompt=None must be"),
        ({**GOOD, "id": None}, "id=None must be"),
        ({**GOOD, "accept": "蓝"}, "accept='蓝' must be a list of strings"),
        ({**GOOD, "accept": ["。"]}, "nothing but punctuation"),
        ({**GOOD, "kind": "addition"}, "must be an integer in digits"),
        ({**GOOD, "kind": "choice"}, "choices=None must be a list of 2 to 26 different"),
        ({**GOOD, "kind": "choice", "choices": "ABC"}, "choices='ABC' must be a list"),
        ({**GOOD, "kind": "choice", "choices": ["a", 2]}, "choices=['a', 2] must be a list"),
        ({**GOOD, "kind": "choice", "choices": ["a", "a"]}, "choices=['a', 'a'] must be a list"),
        ({**GOOD, "kind": "choice", "choices": ["a"] * 27}, "must be a list"),
        ({**GOOD, "kind": "choice", "choices": ["a", "b"], "answer": "C"}, "answer='C' must be a letter from A to B"),
        ({**GOOD, "kind": "choice", "choices": ["a", "b"], "answer": "AB"}, "answer='AB' must be a letter from A to B"),
        ({**GOOD, "kind": "choice", "choices": ["a", "b"], "answer": [1]}, "answer=[1] must be a letter from A to B"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "q.jsonl", GOOD, row)
    with pytest.raises(UserError, match=r"q\.jsonl:2: ") as caught:
        read_questions(path)
    assert message in str(caught.value)


def test_missing_or_empty_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.jsonl: No such file"):
        read_questions(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="has no questions"):
        read_questions(write(tmp_path / "empty.jsonl"))


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    bad = [{**GOOD, "id": 3}, b"{broken", {**GOOD, "kind": "fcat"}]
    with pytest.raises(UserError) as caught:
        read_questions(write(tmp_path / "q.jsonl", bad[0], GOOD, *bad[1:]))
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        f"{tmp_path}/q.jsonl:{n}" for n in (1, 3, 4)
    ]
    with pytest.raises(UserError) as caught:
        read_questions(write(tmp_path / "q.jsonl", *bad * 3))
    *lines, last = str(caught.value).splitlines()
    assert len(lines) == 5 and last == "and 4 more rows with problems"


def test_files_of_the_schoolbook_are_read(tmp_path: Path) -> None:
    schoolbook.write(tmp_path, 0)
    found = read_questions(tmp_path / "questions.jsonl")
    kinds = {"fact", "addition", "unknown", "identity", "first", "grounded"}
    assert {question.task.name for question in found} == kinds
    assert all(question.score(text) for question in found for text in question.row.get("accept", [question.answer]))


def test_names_and_keys_of_tasks_are_their_own() -> None:
    assert [task.name for task in TASKS.values()] == list(TASKS)
    assert len({task.key for task in TASKS.values()}) == len(TASKS)
    assert all(all(words) for task in TASKS.values() for words in (task.heading, task.note))


# --- graders that go wrong --------------------------------------------------------------------------------------------


def with_grader(grade) -> dict:
    return {"odd": dataclasses.replace(TASKS["exact"], name="odd", grade=grade)}


def test_a_grader_that_raises_is_told_with_task_and_question() -> None:
    task = with_grader(lambda question, completion: {}[completion])["odd"]
    with pytest.raises(UserError) as caught:
        Question(task, "q7", {}).score("x")
    assert str(caught.value) == (
        "task 'odd', question 'q7': the grader raised KeyError: 'x'; correct the grader, or the question"
    )
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("score", [1.01, -1, 2, float("nan"), float("inf"), None, "1", [1]])
def test_a_score_out_of_range_is_told(score: object) -> None:
    with pytest.raises(UserError, match=r"'odd', question 'q7': the grader returned .* not a number from 0 to 1"):
        Question(with_grader(lambda *_: score)["odd"], "q7", {}).score("x")


@pytest.mark.parametrize("score", [0, 1, 0.5, True, False])
def test_scores_are_passed_on_as_they_are(score: float) -> None:
    assert Question(with_grader(lambda *_: score)["odd"], "q7", {}).score("x") is score


@pytest.mark.parametrize(
    ("grade", "message"),
    [
        (lambda question, completion: completion[0] == "y", "the grader raised IndexError: string index out of range"),
        (lambda question, completion: 1 / question.row["zero"], "the grader raised KeyError: 'zero'"),
        (lambda question, completion: len(completion), "the grader returned 2, which is not a number from 0 to 1"),
        (lambda question, completion: 0.5, "answer='蓝色' is wrong by its own task 'odd'; correct it"),
    ],
)
def test_a_faulty_grader_is_found_before_a_model_is_asked(tmp_path: Path, monkeypatch, grade, message: str) -> None:
    monkeypatch.setitem(TASKS, "odd", with_grader(grade)["odd"])
    with pytest.raises(UserError) as caught:
        read_questions(write(tmp_path / "q.jsonl", GOOD, {**GOOD, "kind": "odd"}))
    assert f"{tmp_path}/q.jsonl:2: " in str(caught.value) and message in str(caught.value)
