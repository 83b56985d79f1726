"""Held-out questions: asked greedily through the chat template, graded by exact match."""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mengya.errors import UserError
from mengya.evaluate.accuracy import Accuracy, accuracy
from mengya.infer.sampling import Sampling
from mengya.infer.session import generate
from mengya.model.language_model import LanguageModel
from mengya.text.tokenizer import Tokenizer

METRICS = {"fact": "facts_accuracy", "addition": "addition_accuracy", "unknown": "unknown_accuracy"}
"""Question kind -> key in the report. `unknown` asks what nobody taught; the right answer is to say so."""

FINAL = "。.!?…"  # after NFKC, which maps ！？．｡ to these
NUMBER = re.compile(r"(?<![0-9.,])-?[0-9][0-9.,]*")


@dataclass(frozen=True)
class Question:
    """One row of questions.jsonl. `accept` lists further answers that count; additions ignore it."""

    kind: str
    id: str
    prompt: str
    answer: str
    accept: tuple[str, ...] = ()


def read_questions(path: Path) -> list[Question]:
    """Read a JSON-lines file of questions. Raises UserError naming file, line and remedy."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"cannot read the questions {path}: {error.strerror}; give the path of a .jsonl file"
        ) from error
    questions = [_question(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise UserError(f"{path} holds no question; write one JSON object a line with kind, id, prompt and answer")
    return questions


def _question(line: bytes, where: str) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f"{where}: not a JSON object in UTF-8 ({error}); write one question a line") from error
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: {_short(row)} is not an object; write {{'kind': …, 'id': …, 'prompt': …, 'answer': …}}"
        )
    for key in ("kind", "id", "prompt", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise UserError(f"{where}: {key}={_short(row.get(key))} must be a non-empty string")
    if row["kind"] not in METRICS:
        raise UserError(f"{where}: kind={row['kind']!r} is unknown; use one of {', '.join(METRICS)}")
    accept = row.get("accept", [])
    if not isinstance(accept, list) or not all(isinstance(text, str) for text in accept):
        raise UserError(f"{where}: accept={_short(accept)} must be a list of strings")
    for text in (row["answer"], *accept):
        if not normalise(text):
            raise UserError(f"{where}: {text!r} is nothing but punctuation; give an answer that a response can equal")
    if row["kind"] == "addition" and last_integer(row["answer"]) is None:
        raise UserError(f"{where}: answer={row['answer']!r} of an addition must be an integer in digits")
    return Question(row["kind"], row["id"], row["prompt"], row["answer"], tuple(accept))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def ask(
    model: LanguageModel, tokenizer: Tokenizer, questions: Sequence[Question], *, max_new_tokens: int = 64
) -> list[str]:
    """Greedy responses in the order of `questions`; each is asked alone, in a fresh conversation.

    Raises UserError for a question that leaves no room in the context for a response.
    """
    prompts = [
        tokenizer.encode_chat([{"role": "user", "content": question.prompt}], add_generation_prompt=True)[0]
        for question in questions
    ]
    context = model.context
    for question, prompt in zip(questions, prompts, strict=True):
        if len(prompt) >= context:
            raise UserError(
                f"question {question.id!r} has {len(prompt)} tokens, which fill the context of {context}; "
                "shorten it, or train a model with a longer context"
            )
    sampling = Sampling(temperature=0, max_new_tokens=max_new_tokens)
    outputs = generate(model, prompts, sampling, {tokenizer.im_end_id, tokenizer.eos_id})
    return [tokenizer.decode(output).strip() for output in outputs]


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


def grade(question: Question, response: str) -> bool:
    """Whether the response, normalised, is the answer or one of `accept`; of a sum, whether its last integer is."""
    if question.kind == "addition":
        return last_integer(response) == last_integer(question.answer) is not None
    return normalise(response) in {normalise(text) for text in (question.answer, *question.accept)}


def accuracies(questions: Iterable[Question], responses: Iterable[str]) -> dict[str, Accuracy]:
    """Report key -> accuracy, for those kinds of question that occur."""
    flags: dict[str, list[bool]] = {}
    for question, response in zip(questions, responses, strict=True):
        flags.setdefault(METRICS[question.kind], []).append(grade(question, response))
    return {key: accuracy(flags[key]) for key in METRICS.values() if key in flags}
