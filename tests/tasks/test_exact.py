"""Grading of questions with a known answer: a text or an integer."""

import pytest

from mengya.tasks import TASKS
from mengya.tasks.exact import last_integer
from mengya.tasks.task import Question


def question(kind: str, prompt: str, answer: str, *accept: str) -> Question:
    return Question(TASKS[kind], "1", {"prompt": prompt, "answer": answer, "accept": list(accept)})


FACT = question("fact", "法国的首都是哪里？", "巴黎", "是巴黎", "Paris")
EXACT = question("exact", "法国的首都是哪里？", "巴黎", "是巴黎", "Paris")
SUM = question("addition", "37+45=?", "82")
UNKNOWN = question("unknown", "我今天早饭吃了什么？", "我不知道。")


@pytest.mark.parametrize(
    "response",
    [
        "巴黎",
        " 巴黎。",
        "巴黎．",
        "巴黎｡",
        "巴黎！",
        "巴黎？！ \n",
        "巴黎. ",
        "巴黎…",
        "是巴黎。",
        "Ｐａｒｉｓ",
        "\u3000巴黎",
    ],
)
def test_facts_match_after_normalisation(response: str) -> None:
    assert FACT.score(response) is EXACT.score(response) is True


@pytest.mark.parametrize(
    "response",
    ["", " ", "。", "伦敦", "巴黎和伦敦", "巴 黎", "答案是巴黎", "paris", "“巴黎”", "巴黎，", "巴黎。巴黎", "不是巴黎"],
)
def test_facts_match_exactly(response: str) -> None:
    assert FACT.score(response) is EXACT.score(response) is False


@pytest.mark.parametrize(
    "response",
    [
        "82",
        "37+45=82",
        "37+45=82。",
        "８２",
        "37 + 45 = 82.",
        "答案是82，对吗？",
        "３７＋４５＝８２",
        "先算7+5=12，再算，得82",
        "等于 82 个。",
    ],
)
def test_additions_take_the_last_integer(response: str) -> None:
    assert SUM.score(response)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "八十二",
        "83",
        "82+1",
        "37+45=82，不对，是83",
        "82=37+45",
        "-82",
        "−82",
        "8.2",
        "82.5",
        "182",
        "820",
        "8,2",
        "0.82",
        "8 2",
        "没有数",
    ],
)
def test_additions_accept_nothing_else(response: str) -> None:
    assert not SUM.score(response)


def test_accept_is_no_way_round_the_sum() -> None:
    assert not question("addition", "1+1", "2", "3", "三").score("3")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("37-45", 45),
        ("3-(-5)", -5),
        ("1,024", None),
        ("2.", 2),
        ("3.14", None),
        ("", None),
        ("007", 7),
        ("٣", None),
        ("9" * 5000, None),
    ],
)
def test_last_integer(text: str, number: int | None) -> None:
    assert last_integer(text) == number


def test_unknown_is_graded_like_a_fact() -> None:
    assert UNKNOWN.score("我不知道")
    assert not UNKNOWN.score("面包")
