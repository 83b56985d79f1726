import pytest

from mengya.text.thoughts import Thoughts, split_thoughts


def grown(pieces) -> tuple[str, str]:
    thoughts = Thoughts()
    for piece in pieces:
        thoughts.take(piece)
    thoughts.end()
    return thoughts.thought, thoughts.answer


CASES = [
    ("<think>想</think>答<b", "想", "答<b"),
    ("想想</think>答", "想想", "答"),  # the template opened the thought
    ("<think>没有结束", "没有结束", ""),
    ("a < b，c </thin", "", "a < b，c </thin"),
    ("<think>一</think>答</think>二", "一", "答</think>二"),  # the first end counts
    ("```\n<think>x</think>\n```\n好", "", "```\n<think>x</think>\n```\n好"),
    ("写作 `</think>` 即可", "", "写作 `</think>` 即可"),
    ("答<think>不是开头</think>", "答<think>不是开头", ""),
    ("<thinking>别的</thinking>", "", "<thinking>别的</thinking>"),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "thought", "answer"), CASES)
def test_any_cut_gives_the_same(text, thought, answer):
    assert grown([text]) == (thought, answer)
    assert grown(text) == (thought, answer)
    for first in range(len(text)):
        for second in range(first, len(text)):
            assert grown([text[:first], text[first:second], text[second:]]) == (thought, answer)


def test_no_more_is_held_back_than_the_beginning_of_a_tag():
    thoughts = Thoughts()
    thoughts.take("a < b")
    assert thoughts.answer == "a < b"
    thoughts.take(" </thi")
    assert thoughts.answer == "a < b "
    thoughts.take("s")
    assert thoughts.answer == "a < b </this"


def test_an_open_thought_is_told():
    thoughts = Thoughts()
    thoughts.take("\n <think>想")
    assert (thoughts.thought, thoughts.answer, thoughts.closed) == ("想", "", False)
    thoughts.take("</think>答")
    assert (thoughts.answer, thoughts.closed) == ("答", True)


def test_what_a_history_is_told():
    assert split_thoughts("<think>\n想\n</think>\n\n答案\n") == ("想", "答案")
