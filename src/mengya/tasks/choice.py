"""Multiple choice: the first letter of a choice that the completion names must be the right one."""

import re
import string
import unicodedata
from collections.abc import Mapping
from typing import Any

from mengya.tasks.task import Question, Task, Words, short


def letters_of(row: Mapping[str, Any]) -> str:
    return string.ascii_uppercase[: len(row["choices"])]


def check(row: Mapping[str, Any]) -> None:
    """A row has `choices`, a list of texts, and an `answer`, the letter of one."""
    choices = row.get("choices")
    texts = [text for text in choices if isinstance(text, str) and text.strip()] if isinstance(choices, list) else []
    if not 2 <= len(texts) <= 26 or len(set(texts)) < len(texts) or texts != choices:
        raise ValueError(f"choices={short(choices)} must be a list of 2 to 26 different non-empty strings")
    if row.get("answer") not in list(letters_of(row)):
        raise ValueError(f"answer={short(row.get('answer'))} must be a letter from A to {letters_of(row)[-1]}")


def messages(question: Question) -> list[dict[str, str]]:
    """The prompt, then one lettered choice a line."""
    lettered = zip(letters_of(question.row), question.row["choices"], strict=True)
    lines = [question.row["prompt"], *(f"{letter}. {text}" for letter, text in lettered)]
    return [{"role": "user", "content": "\n".join(lines)}]


def grade(question: Question, completion: str) -> bool:
    """By the first letter of a choice that stands alone: B of "B", "（B）", "答案是B。" and "B. Vitamin A"."""
    alone = f"(?<![A-Za-z0-9])[{letters_of(question.row)}](?![A-Za-z0-9])"
    found = re.search(alone, unicodedata.normalize("NFKC", completion))
    return found is not None and found.group() == question.row["answer"]


NOTE = Words("the first letter of a choice in the response must be the right one.", "以回答中最先出现的选项字母为准。")
TASK = Task("choice", "choice_accuracy", Words("Multiple choice", "选择题"), NOTE, check, grade, messages)
