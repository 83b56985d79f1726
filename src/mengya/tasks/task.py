"""A task: questions, a grader and a score. What evaluation measures is what reinforcement learning rewards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mengya.errors import UserError


class Words(NamedTuple):
    """The same words in the two languages of the report."""

    english: str
    chinese: str


@dataclass(frozen=True)
class Task:
    """How one kind of question is checked, asked and graded.

    `name` is the `kind` of a row, `key` names the result in report.json, `heading` and `note` (what counts as right)
    are in the report. `check` raises ValueError, with the value and the remedy, if a row lacks what `grade` needs.
    `grade` scores a completion from 0 (wrong) to 1 (right); a bool is also a score. `messages` are the conversation
    that the completion answers.
    """

    name: str
    key: str
    heading: Words
    note: Words
    check: Callable[[Mapping[str, Any]], None]
    grade: Callable[["Question", str], float]
    messages: Callable[["Question"], list[dict[str, str]]] = lambda q: [{"role": "user", "content": q.row["prompt"]}]


@dataclass(frozen=True)
class Question:
    """One row of a questions file, checked by its task."""

    task: Task
    id: str
    row: Mapping[str, Any]

    @property
    def answer(self) -> str | None:
        """The expected answer, if the row has one as text."""
        return self.row["answer"] if isinstance(self.row.get("answer"), str) else None

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
