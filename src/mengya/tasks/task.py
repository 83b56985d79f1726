"""A task: questions, a grader and a score. What evaluation measures is what reinforcement learning rewards."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mengya.errors import UserError


class Words(NamedTuple):
    """The same words in the two languages of the report."""

    english: str
    chinese: str


@dataclass(frozen=True)
class Measure:
    """One figure of a task: the sum of what is right over the sum of what it is out of, of all its questions.

    `key`, `heading` and `note` are as those of a task. `share` gives (right, out of) for a question, a completion and
    its score. `each`: how many of `out of` stand for one decision, which is what a confidence interval counts.
    """

    key: str
    heading: Words
    note: Words
    share: Callable[["Question", str, float], tuple[float, float]]
    each: int = 1


@dataclass(frozen=True)
class Task:
    """How one kind of question is checked, asked and graded.

    `name` is the `kind` of a row, `key` names the result in report.json, `heading` and `note` (what counts as right)
    are in the report. `check` raises ValueError, with the value and the remedy, if a row lacks what `grade` needs.
    `grade` scores a completion from 0 (wrong) to 1 (right); a bool is also a score. `messages` are the conversation
    that the completion answers. `measures` are what is reported of all questions; left out, it is the mean score.
    """

    name: str
    key: str
    heading: Words
    note: Words
    check: Callable[[Mapping[str, Any]], None]
    grade: Callable[["Question", str], float]
    messages: Callable[["Question"], list[dict[str, str]]] = lambda q: [{"role": "user", "content": q.row["prompt"]}]
    measures: tuple[Measure, ...] = ()

    def measured(self) -> tuple[Measure, ...]:
        return self.measures or (Measure(self.key, self.heading, self.note, lambda question, text, score: (score, 1)),)


@dataclass(frozen=True)
class Question:
    """One row of a questions file, checked by its task."""

    task: Task
    id: str
    row: Mapping[str, Any]

    @property
    def answer(self) -> str | None:
        """The expected answer, if the row has one; an object as JSON."""
        answer = self.row.get("answer")
        if isinstance(answer, dict):
            return json.dumps(answer, ensure_ascii=False)
        return answer if isinstance(answer, str) else None

    def messages(self) -> list[dict[str, str]]:
        return self.task.messages(self)

    def score(self, completion: str) -> float:
        """From 0 (wrong) to 1 (right). UserError if the task's grader raises or returns anything else."""
        where = f"task {self.task.name!r}, question {self.id!r}: the grader"
        try:
            score = self.task.grade(self, completion)
        except Exception as error:
            problem = f"{where} raised {type(error).__name__}: {error}"
            raise UserError(f"{problem}; correct the grader, or the question") from error
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            raise UserError(f"{where} returned {score!r}, which is not a number from 0 to 1; correct the grader")
        return score


def check_text(row: Mapping[str, Any], field: str) -> None:
    """ValueError unless the row has text in `field`."""
    if not isinstance(row.get(field), str) or not row[field].strip():
        raise ValueError(f"{field}={short(row.get(field))} must be a non-empty string")


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
