"""Multiple choice: how it is asked and graded."""

import pytest

from mengya.tasks import TASKS
from mengya.tasks.task import Question

COLOUR = Question(TASKS["choice"], "1", {"prompt": "天空是什么颜色？", "choices": ["红", "蓝", "绿"], "answer": "B"})


def test_choices_are_lettered_below_the_prompt() -> None:
    assert COLOUR.messages() == [{"role": "user", "content": "天空是什么颜色？\nA. 红\nB. 蓝\nC. 绿"}]


@pytest.mark.parametrize(
    "response",
    [
        "B",
        "B。",
        "Ｂ",
        "(B)",
        "（B）",
        "B. 蓝",
        "答案是B",
        "选B，不选A",
        "The answer is B.",
        "D or B",
        "ABC: B",
        "**B**",
        "选B蓝色",
    ],
)
def test_the_first_letter_of_a_choice_counts(response: str) -> None:
    assert COLOUR.score(response) is True


@pytest.mark.parametrize("response", ["", "蓝", "A", "C. B", "b", "BA", "Blue", "B2", "D", "A或B"])
def test_anything_else_is_wrong(response: str) -> None:
    assert COLOUR.score(response) is False
