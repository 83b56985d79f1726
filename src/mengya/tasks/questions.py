"""Questions files: one JSON object a line, checked as a whole before any model is asked."""

import difflib
import json
from pathlib import Path
from typing import Any

from mengya.errors import UserError
from mengya.tasks import TASKS
from mengya.tasks.task import Question, Task, check_text, short

SHOWN = 5  # problems that a message lists


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSON-lines file. UserError with the first problems, each with its line, and how many follow.

    A row has `kind` (the name of a task), `prompt`, and what its task needs. It may have an `id`.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        problem = f"cannot read the questions {path}: {error.strerror}"
        raise UserError(f"{problem}; give the path of a .jsonl file") from error
    questions, problems = [], []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                questions.append(_question(line, f"{path.name}:{number}"))
        except (ValueError, RecursionError, UserError) as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        more = [f"and {len(problems) - SHOWN:,} more rows with problems"] if len(problems) > SHOWN else []
        raise UserError("\n".join(problems[:SHOWN] + more))
    if not questions:
        raise UserError(f"{path} has no questions; write one JSON object a line with kind, prompt and answer")
    return questions


def _question(line: bytes, where: str) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"not a JSON object in UTF-8 ({error}); write one question a line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{short(row)} is not an object; write {{'kind': …, 'prompt': …, 'answer': …}}")
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
