"""Questions with a known answer: a text that the completion must equal, or an integer that it must end with."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from mengya.tasks.task import Question, Task, Words, check_text, short

FINAL = "。.!?…"  # after NFKC, which maps ！？．｡ to these
NUMBER = re.compile(r"(?<![0-9.,])-?[0-9][0-9.,]*")


def normalise(text: str) -> str:
    """NFKC, without surrounding white space and sentence-final punctuation."""
    text = unicodedata.normalize("NFKC", text).strip()
    while text and (text[-1] in FINAL or text[-1].isspace()):
        text = text[:-1]
    return text


def last_integer(text: str) -> int | None:
    """The last number of the text if it is an integer in digits: 82 of "37+45=82。", None of "8.2" and of "1,024"."""
    text = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-")
    numbers = [match.group().rstrip(".,") for match in NUMBER.finditer(text)]
    return int(numbers[-1]) if numbers and re.fullmatch("-?[0-9]{1,18}", numbers[-1]) else None


def check(row: Mapping[str, Any]) -> None:
    """A row has an `answer`, and may have a list of further ones that count, `accept`."""
    check_text(row, "answer")
    accept = row.get("accept", [])
    if not isinstance(accept, list) or not all(isinstance(text, str) for text in accept):
        raise ValueError(f"accept={short(accept)} must be a list of strings")
    for text in (row["answer"], *accept):
        if not normalise(text):
            raise ValueError(f"{text!r} is nothing but punctuation; give an answer that a response can equal")


def grade(question: Question, completion: str) -> bool:
    """Whether the completion, normalised, is the answer or one of `accept`."""
    right = (question.row["answer"], *question.row.get("accept", []))
    return normalise(completion) in {normalise(text) for text in right}


def check_integer(row: Mapping[str, Any]) -> None:
    """A row has an `answer` in digits."""
    check_text(row, "answer")
    if last_integer(row["answer"]) is None:
        raise ValueError(f"answer={short(row['answer'])} must be an integer in digits")


def grade_integer(question: Question, completion: str) -> bool:
    """Whether the last number of the completion is the answer."""
    return last_integer(completion) == last_integer(question.row["answer"])


NOTE = Words("the whole response must equal an accepted answer.", "整个回答须与可接受的答案一致。")
TASK = Task("exact", "exact_accuracy", Words("Exact answers", "标准答案"), NOTE, check, grade)
