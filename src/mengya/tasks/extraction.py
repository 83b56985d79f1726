"""Extraction: a completion that is JSON, {label: [texts]}, compared with the right one, pair by pair."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mengya.tasks.task import Measure, Question, Task, Words, short

Pairs = Counter[tuple[str, str]]
"""(label, text) -> how often."""

_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=list)  # pairs: a label may stand twice
_OBJECT = re.compile(r"\{\s*[\"}]")
_TRIES = 100
"""Beginnings of objects that are looked at: each costs as much as the text before it is long."""


def pairs_of(value: Any) -> Pairs | None:
    """The pairs in an object, given as a list of its members; None if it is not label -> text, number or list of them.

    Compared are NFKC forms with single spaces. Empty texts, null, true and false are nothing.
    """
    found: Pairs = Counter()
    if not isinstance(value, list) or not all(isinstance(member, tuple) for member in value):
        return None
    for label, texts in value:
        for text in texts if isinstance(texts, list) else [texts]:
            if isinstance(text, list | tuple | dict):
                return None
            if said := _plain(text):
                found[_plain(label), said] += 1
    return found


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return ""
    return " ".join(unicodedata.normalize("NFKC", str(value)).split())


def answered(completion: str) -> Pairs | None:
    """The pairs of the first JSON object in a completion, whatever stands around it; None if it is of another form.

    An empty object, such as one in a repeated instruction, is the answer only if none with members follows. A thought
    before it does not count. An object that is cut off is not searched for objects inside of it.
    """
    text = completion.rpartition("</think>")[2]
    place, empty = 0, None
    for _ in range(_TRIES):
        start = _OBJECT.search(text, place)
        if start is None:
            break
        try:
            members, place = _DECODER.raw_decode(text, start.start())
            if members:
                return pairs_of(members)
            empty = pairs_of(members)
        except json.JSONDecodeError as error:
            place = max(error.pos, start.start() + 1)
        except (ValueError, RecursionError):  # a number with thousands of digits; thousands of brackets
            break
    return empty


def gold(row: Mapping[str, Any]) -> Pairs | None:
    """The pairs of a row's answer, an object or its JSON."""
    answer = row["answer"]
    try:
        return pairs_of(_DECODER.decode(answer if isinstance(answer, str) else json.dumps(answer)))
    except (ValueError, RecursionError):
        return None


def check(row: Mapping[str, Any]) -> None:
    """A row has an `answer`, {label: [texts]}, or this as JSON."""
    if not isinstance(row.get("answer"), str | dict) or gold(row) is None:
        form = '{"人名": ["张三"]}, a list of texts for each label, or {} for none'
        raise ValueError(f"answer={short(row.get('answer'))} must be an object like {form}")


class Counts(NamedTuple):
    right: int
    found: int
    """By the completion."""
    wanted: int
    is_json: bool

    @property
    def f1(self) -> float:
        """1 where nothing was wanted and nothing found."""
        return 2 * self.right / (self.found + self.wanted) if self.found + self.wanted else 1.0


def counts(question: Question, completion: str) -> Counts:
    """Of pairs, each as often as it stands. A completion without an object of the right form found nothing."""
    found, wanted = answered(completion), gold(question.row)
    assert wanted is not None, "rows are checked before they are asked"
    right = (found or Counter()) & wanted
    return Counts(right.total(), found.total() if found else 0, wanted.total(), found is not None)


def grade(question: Question, completion: str) -> float:
    """F1 of this question alone; 0 for a completion that is not JSON of the right form."""
    counted = counts(question, completion)
    return counted.f1 if counted.is_json else 0.0


def _measure(
    name: str, heading: Words, note: Words, share: Callable[[Counts], tuple[float, float]], each: int = 1
) -> Measure:
    return Measure(f"extraction_{name}", heading, note, lambda q, text, _: share(counts(q, text)), each)


F1 = _measure(
    "f1",
    Words("Extraction F1", "抽取 F1"),
    Words(
        "the harmonic mean of precision and recall, counted over all questions together.",
        "精确率与召回率的调和平均，所有问题合在一起计数。",
    ),
    lambda c: (2 * c.right, c.found + c.wanted),
    each=2,  # what is right counts for both sides
)
PRECISION = _measure(
    "precision",
    Words("Precision", "精确率"),
    Words("how much of what was extracted is right, label and text.", "抽取出的内容中，类别和文字都对的比例。"),
    lambda c: (c.right, c.found),
)
RECALL = _measure(
    "recall",
    Words("Recall", "召回率"),
    Words("how much of what should be extracted was.", "应当抽取的内容中，抽取到的比例。"),
    lambda c: (c.right, c.wanted),
)
FORM = _measure(
    "json",
    Words("Valid JSON", "合法 JSON"),
    Words(
        "responses that hold a JSON object of labels and texts; in any other, nothing counts as extracted.",
        "含有“类别到文字”的 JSON 对象的回答；其余的回答视为什么也没有抽取到。",
    ),
    lambda c: (c.is_json, 1),
)
TASK = Task("extraction", F1.key, F1.heading, F1.note, check, grade, measures=(F1, PRECISION, RECALL, FORM))
