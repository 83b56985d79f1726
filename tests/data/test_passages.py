"""Questions about passages of the schoolbook: answerable by copying alone, and held-out ones never seen in training."""

import json
import random
import re
from collections import Counter

import pytest

from mengya.data.schoolbook import passages, topics, write, write_reading
from mengya.data.schoolbook.tables import load
from mengya.tasks import TASKS
from mengya.tasks.task import Question
from mengya.text.grounding import CHINESE, parse_answer, without_citations


@pytest.fixture(scope="module")
def relations():
    return load()


@pytest.fixture(scope="module")
def rows(tmp_path_factory, relations):
    """(texts, conversations, held-out questions), those of the schoolbook and those about passages."""
    out = tmp_path_factory.mktemp("schoolbook")
    write(out, seed=3)
    names = ("text.jsonl", "conversations.jsonl", "questions.jsonl")
    texts, talks, asked = (
        [json.loads(line) for line in (out / name).read_text(encoding="utf-8").split("\n")[:-1]] for name in names
    )
    reading = [
        [{"content": text} for turn in turns for text in turn]
        for turns in passages.readings(random.Random(3), load(), 3000)
    ]
    said = [[{"content": message["content"]} for message in row["messages"]] for row in talks]
    asked += passages.questions(random.Random(4), relations)
    return [row["text"] for row in texts], said + reading, asked


@pytest.fixture(scope="module")
def held(rows):
    return [row for row in rows[2] if row["kind"] == "grounded"]


def test_held_out_questions_are_right_by_their_task_and_of_both_sorts(held):
    for row in held:
        TASKS["grounded"].check(row)
        assert Question(TASKS["grounded"], row["id"], row).score(row["answer"]) == 1
    refused = sum(row["answer"] == CHINESE.refusal for row in held)
    assert len(held) == 300 and refused == 100 and len({row["prompt"] for row in held}) > 290


def test_an_answer_stands_in_the_passage_that_it_cites(held):
    for row in held:
        said = parse_answer(row["answer"], len(row["passages"]))
        if not said.refused:
            (number,) = said.cited
            assert without_citations(said.text) in row["passages"][number - 1], row


def test_conversations_answer_from_the_sentence_that_is_shown(relations):
    checked = Counter()
    for turns in passages.readings(random.Random(5), relations, 500):
        shown, first = re.fullmatch(r"资料：(.*。)\n问题：(.*)", turns[0][0]).groups()
        asked = [first, *(question.removeprefix(CHINESE.question) for question, _ in turns[1:])]
        assert len(set(asked)) == len(turns) <= 2
        answers = [answer for _, answer in turns if answer != CHINESE.refusal]
        assert len(answers) == 1 and answers[0].endswith("。") and answers[0].rstrip("。") in shown, turns
        checked[len(turns)] += 1
    assert min(checked[1], checked[2]) > 100


def test_only_plain_questions_get_words_before_them(relations):
    """Not those that have such words of their own ("请问"), nor requests."""
    frames = "|".join(passages._ASKING)
    seen = set()
    for turns in passages.readings(random.Random(6), relations, 1000):
        for asked, _ in turns:
            if framed := re.search(rf"问题：({frames})(.*)", asked):
                assert framed[2].endswith("？") and not framed[2].startswith(("请", "我", "你", "帮")), asked
                seen.add(framed[1])
    assert seen == {*passages._ASKING}


def test_invented_subjects_are_told_and_asked_of_in_each_wording():
    _, kinds = passages.load_kinds()
    for attribute in (attribute for kind in kinds for attribute in kind.attributes):
        for told in (*attribute.say, *attribute.told):
            assert told.count("{s}") == told.count("{a}") == 1 and told[-1] not in "。？", told
        for asked in (*attribute.ask, *attribute.asked):
            assert asked.count("{s}") == 1 and "{a}" not in asked and asked.endswith("？"), asked
        for wordings in (attribute.say, attribute.ask):
            assert len(wordings) == len(set(wordings)) >= 10


def test_a_fifth_of_held_out_passages_is_told_in_new_words(relations, monkeypatch):
    told, say = Counter(), passages.Told.say

    def counted(self, way):
        told[way in self.attribute.told] += bool(self.attribute.told)
        return say(self, way)

    monkeypatch.setattr(passages.Told, "say", counted)
    for held_out, least, most in ((False, 0, 0), (True, 0.15, 0.25)):
        told.clear()
        maker = passages.Maker(random.Random(7), relations, held_out)
        for _ in range(200):
            maker.scene()
        assert least <= told[True] / told.total() <= most


def test_reading_is_written_for_a_seed(tmp_path):
    assert write_reading(tmp_path, 1) == {"reading.jsonl": passages.READINGS}
    lines = (tmp_path / "reading.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    again = passages.readings(random.Random("1/reading"), load(), 20)
    for line, turns in zip(lines, again, strict=False):
        assert [message["content"] for message in json.loads(line)["messages"]] == [t for turn in turns for t in turn]


def test_no_passage_or_question_that_is_held_out_is_trained_on(rows, held):
    texts = [*rows[0], *(message["content"] for messages in rows[1] for message in messages)]
    lines = {line.removeprefix(CHINESE.question) for text in texts for line in text.split("\n")}
    everything = "\n".join(texts)
    assert not lines & {row["prompt"] for row in held}
    for row in held:
        for number in parse_answer(row["answer"], 9).cited:
            assert row["passages"][number - 1] not in everything


@pytest.mark.parametrize("held_out", [False, True])
def test_names_and_changed_facts_stay_on_their_side(relations, held_out):
    drawn = []

    class Watched(passages.Maker):
        def _name(self, *parts):
            drawn.append(super()._name(*parts))
            return drawn[-1]

    maker = Watched(random.Random(0), relations, held_out)
    for _ in range(200):
        maker.scene()
    taught = [name for names in topics.load_names() for name in names.names["zh"]]
    assert len(set(drawn)) > 200 and all(passages.is_held_out(name) == held_out for name in drawn)
    assert not [name for name in drawn if any(other in name for other in taught)]
    for kind in maker.changed:
        for name in kind.names:
            for value in maker._values(kind, name, kind.attributes[0]):
                assert passages.is_held_out(f"{name}={value}") == held_out


def test_wordings_for_held_out_questions_are_not_in_training(rows):
    """Whatever the subject and the value are."""
    texts = [*rows[0], *(message["content"] for messages in rows[1] for message in messages)]
    every = re.sub("。|^问题：", "\n", "\n".join(dict.fromkeys(texts)), flags=re.MULTILINE)
    _, kinds = passages.load_kinds()
    for attribute in (attribute for kind in kinds for attribute in kind.attributes):
        assert not {*attribute.say, *attribute.ask} & {*attribute.told, *attribute.asked}
        for template in (*attribute.told, *attribute.asked):
            pattern = re.sub(r"\\\{[sa]\\\}", r"[^，？\\n]{1,20}", re.escape(template))
            assert not re.search(rf"(^|，|\] ){pattern}($|，)", every, re.MULTILINE), template
