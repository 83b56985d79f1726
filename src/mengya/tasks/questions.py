"""Questions files: one JSON object a line, checked as a whole before any model is asked."""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mengya.data.fields import Fields, Notes
from mengya.data.files import TAGGED, file_format
from mengya.data.readers import Rejected, read_rows
from mengya.data.spans import sentence_in
from mengya.errors import UserError
from mengya.tasks import TASKS, extraction
from mengya.tasks.task import Question, Task, check_text, short

SHOWN = 5  # problems that a message lists


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSON-lines file. UserError with the first problems, each with its line, and how many follow.

    A row has `kind` (the name of a task), `prompt`, and what its task needs. It may have an `id`. A row without a kind
    may be a sentence with its entities, which are to be extracted; so may a sentence of a file of tags (.bio, …).
    """
    questions, problems = [], []
    for number, row in _tagged(path) if file_format(path)[0] in (*TAGGED, ".txt", ".tsv") else _lines(path):
        try:
            questions.append(_question(row, f"{path.name}:{number}"))
        except (ValueError, RecursionError, UserError) as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        more = [f"and {len(problems) - SHOWN:,} more rows with problems"] if len(problems) > SHOWN else []
        raise UserError("\n".join(problems[:SHOWN] + more))
    if not questions:
        raise UserError(f"{path} has no questions; write one JSON object a line with kind, prompt and answer")
    return questions


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        problem = f"cannot read the questions {path}: {error.strerror}"
        raise UserError(f"{problem}; give the path of a .jsonl file") from error
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _tagged(path: Path) -> Iterator[tuple[int, Any]]:
    return ((row.line, row if isinstance(row, Rejected) else row.value) for row in read_rows(path))


def _question(row: Any, where: str) -> Question:
    if isinstance(row, Rejected):
        raise ValueError(f"{row.reason}: {short(row.raw)}")
    try:
        row = json.loads(row) if isinstance(row, bytes) else row
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"not a JSON object in UTF-8 ({error}); write one question a line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{short(row)} is not an object; write {{'kind': …, 'prompt': …, 'answer': …}}")
    sentence = None if "kind" in row else sentence_in(Fields(row, Notes()))
    if sentence is not None:
        row = {"kind": extraction.TASK.name, "prompt": sentence.prompt, "answer": sentence.answer}
    task = _task(row.get("kind"))
    row = {"id": where, **row}
    check_text(row, "id")
    check_text(row, "prompt")
    task.check(row)
    question = Question(task, row["id"], row)
    question.score("")  # a grader that raises is found now, before any model is asked
    if question.answer is not None and question.score(question.answer) < 1:
        raise ValueError(f"answer={short(question.answer)} is wrong by its own task {task.name!r}; correct it")
    return question


def _task(kind: Any) -> Task:
    if isinstance(kind, str) and kind in TASKS:
        return TASKS[kind]
    near = difflib.get_close_matches(kind, TASKS, 1) if isinstance(kind, str) else []
    hint = f"did you mean {near[0]!r}? There are" if near else "use one of"
    raise ValueError(f"kind={short(kind)} is not a task; {hint} {', '.join(TASKS)}")
