"""Questions about passages: how they are asked, what is right, and the two figures."""

import pytest

from mengya.evaluate.questions import results
from mengya.tasks import TASKS
from mengya.tasks.task import Question
from mengya.text.grounding import CHINESE, grounded_message

PASSAGES = ["白石镇有35402人。", "青河镇建于1987年。"]


def question(answer: str) -> Question:
    return Question(TASKS["grounded"], "1", {"prompt": "青河镇建于哪一年？", "passages": PASSAGES, "answer": answer})


YEAR, ABSENT = question("1987年[2]。"), question(CHINESE.refusal)


def test_passages_are_numbered_before_the_question() -> None:
    (message,) = YEAR.messages()
    assert message == {"role": "user", "content": grounded_message("青河镇建于哪一年？", PASSAGES)}
    assert all(part in message["content"] for part in ("[1] 白石镇", "[2] 青河镇", "问题：青河镇"))


@pytest.mark.parametrize("response", ["1987年[2]。", "1987年【2】", "[2] 1987年。", "１９８７年[2][2][9]。"])
def test_the_answer_with_its_passage_is_right(response: str) -> None:
    assert YEAR.score(response) is True and ABSENT.score(response) is False


@pytest.mark.parametrize(
    "response", ["", "1987年", "1987年[1]。", "1987年[1][2]。", "1978年[2]。", "[2]", "建于1987年[2]。", "1987年[3]"]
)
def test_anything_else_is_wrong(response: str) -> None:
    assert YEAR.score(response) is False and ABSENT.score(response) is False


@pytest.mark.parametrize("response", [CHINESE.refusal, "我不知道。", "资料里没有关于这件事的信息。"])
def test_a_refusal_is_right_where_the_passages_do_not_say(response: str) -> None:
    assert ABSENT.score(response) is True and YEAR.score(response) is False


def test_answers_and_refusals_are_two_figures() -> None:
    asked, said = [YEAR, YEAR, ABSENT], ["1987年[2]。", "1987年[1]。", CHINESE.refusal]
    scores = [one.score(text) for one, text in zip(asked, said, strict=True)]
    figures = {result.key: result.accuracy for result in results(asked, said, scores)}
    assert (figures["grounded"].value, figures["grounded_refused"].value) == (0.5, 1.0)


@pytest.mark.parametrize(
    "row",
    [
        {"answer": "1987年[2]。"},
        {"answer": "1987年[2]。", "passages": "一段"},
        {"answer": "1987年[2]。", "passages": ["一段", " "]},
        {"answer": "1987年[3]。", "passages": PASSAGES},
        {"answer": "[2]。", "passages": PASSAGES},
        {"answer": "1987年", "passages": PASSAGES},
        {"answer": 1987, "passages": PASSAGES},
    ],
)
def test_rows_that_cannot_be_graded_are_refused(row: dict) -> None:
    with pytest.raises(ValueError, match=r"(answer|passages)="):
        TASKS["grounded"].check(row)
