"""Questions about numbered passages: answered from them with the right passage's number, or refused."""

from collections.abc import Mapping
from typing import Any

from mengya.tasks.exact import normalise
from mengya.tasks.task import Measure, Question, Task, Words, check_text, short
from mengya.text.grounding import GroundedAnswer, grounded_message, parse_answer, without_citations


def check(row: Mapping[str, Any]) -> None:
    """A row has `passages`, a list of texts, and an `answer` that cites one of them, or says that none holds it."""
    check_text(row, "answer")
    passages = row.get("passages")
    if not isinstance(passages, list) or not all(isinstance(text, str) and text.strip() for text in passages):
        raise ValueError(f"passages={short(passages)} must be a list of non-empty strings")
    answer = parse_answer(row["answer"], len(passages))
    if not answer.refused and not (answer.cited and normalise(without_citations(answer.text))):
        raise ValueError(f'answer={short(row["answer"])} cites no passage; write it like "1987年[2]。"')


def messages(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": grounded_message(question.row["prompt"], question.row["passages"])}]


def gold(question: Question) -> GroundedAnswer:
    return parse_answer(question.row["answer"], len(question.row["passages"]))


def grade(question: Question, completion: str) -> bool:
    """Whether the completion refuses as it should, or is the right answer, with the right passages and no others."""
    wanted, said = gold(question), parse_answer(completion, len(question.row["passages"]))
    if wanted.refused or said.refused:
        return wanted.refused and said.refused
    texts = [normalise(without_citations(answer.text)) for answer in (wanted, said)]
    return texts[0] == texts[1] and set(wanted.cited) == set(said.cited)


ANSWERED = Measure(
    "grounded",
    Words("Answered from passages", "依据资料回答"),
    Words(
        "names and facts that occur in no training text; the answer and the passage that it cites must be right.",
        "名字和事实没有在训练中出现过；答案和所引资料的编号都要对。",
    ),
    lambda question, text, score: (0, 0) if gold(question).refused else (score, 1),
)
REFUSED = Measure(
    "grounded_refused",
    Words("Refused where passages do not say", "资料中没有就不答"),
    Words(
        "questions that the passages do not answer; the response must say so.", "资料中没有答案的问题；回答须说没有。"
    ),
    lambda question, text, score: (score, 1) if gold(question).refused else (0, 0),
)
TASK = Task("grounded", ANSWERED.key, ANSWERED.heading, ANSWERED.note, check, grade, messages, (ANSWERED, REFUSED))
