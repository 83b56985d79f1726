"""Extraction: what counts as an answer, and entity-level precision, recall and F1 against counting by hand."""

import json
import random
import time
from collections import Counter
from math import sqrt

import pytest

from mengya.errors import UserError
from mengya.evaluate.accuracy import Z_95
from mengya.evaluate.questions import results
from mengya.tasks import extraction
from mengya.tasks.questions import read_questions
from mengya.tasks.task import Question

from ..conftest import write_jsonl

GOLD = {"人名": ["张三", "李四"], "地名": ["北京"]}
KEYS = ("extraction_f1", "extraction_precision", "extraction_recall", "extraction_json")


def question(answer: object = GOLD) -> Question:
    return Question(extraction.TASK, "1", {"kind": "extraction", "prompt": "?", "answer": answer})


def written(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


RIGHT = [
    written(GOLD),
    json.dumps(GOLD, indent=2),
    written({"地名": "北京", "人名": ["李四", "张三"]}),
    f"```json\n{written(GOLD)}\n```",
    f"```\n{written(GOLD)}\n```\n希望有帮助！{{}}",
    f"结果{{如下}}：{written(GOLD)}。",
    f'格式 {{"类别": [文字]}}，答案：{written(GOLD)}',
    f'<think>\n也许是 {{"人名": []}}。\n</think>\n\n{written(GOLD)}',
    f"\ufeff{written(GOLD)}\r\n",
    '{"人名": ["张三"], "人名": ["李四"], "地名": ["北京"]}',
    f"没有就写 {{}}。\n{written(GOLD)}",
    f"```bash\nls {{}}\n```\n```json\n{written(GOLD)}\n```",
    f'{written(GOLD)}\n\n{{"人名": ["王五"]}}',
    '{"人名": [" 张三", "李四\\n"], "地名": ["北京", "", null], "组织": [], "书名": null, "游戏": {}}',
]


@pytest.mark.parametrize("completion", RIGHT)
def test_right_answers(completion):
    assert question().score(completion) == 1


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "没有。",
        "{",
        '{"人名": ["张三", "李四',
        '{"人名": ["张三", "李四"], "地名": ["北京"], "x": {}',  # cut off: the {} in it is no answer
        "{'人名': ['张三', '李四'], '地名': ['北京']}",
        '["张三", "李四"]',
        '{"人名": [["张三"]]}',
        '{"人名": [{"名字": "张三"}]}',
        '{"人名": {"张三": [0, 1]}}',
        "__import__('os').abort()",
        '{"a": ' + "9" * 5000 + "}",
        '{"a": ' * 5000,
        '{"a": ' + "[" * 100_000,
        "{" * 100_000,
        '{"' * 100_000,
        '{"a":1,' * 50_000,
    ],
)
def test_what_is_not_json_of_the_form_is_nothing_and_is_counted(completion):
    start = time.perf_counter()
    assert question().score(completion) == question({}).score(completion) == 0
    assert extraction.counts(question(), completion) == (0, 0, 3, False)
    assert time.perf_counter() - start < 2


def test_a_huge_answer_is_one():
    many = {"人名": [f"张{i}" for i in range(100_000)]}
    assert extraction.counts(question(), written(many)) == (0, 100_000, 3, True)


@pytest.mark.parametrize(
    ("answer", "completion", "counted"),
    [
        ({}, "{}", (0, 0, 0)),
        ({}, '{"人名": []}', (0, 0, 0)),
        ({}, written(GOLD), (0, 3, 0)),
        (GOLD, "{}", (0, 0, 3)),
        ({"人名": ["张三", "张三"]}, '{"人名": ["张三"]}', (1, 1, 2)),  # each mention counts
        ({"人名": ["张三"]}, '{"人名": ["张三", "张三", "张三"]}', (1, 3, 1)),
        ({"人名": ["张三"]}, '{"地名": ["张三"]}', (0, 1, 1)),
        ({"地名": ["北京"], "组织": ["北京大学"]}, '{"组织": ["北京大学"]}', (1, 1, 2)),  # one within the other
        ({"组织": ["ＡＢＣ公司（中国）"]}, '{"组织": ["ABC公司(中国)"]}', (1, 1, 1)),
        ({"organisation": ["New  York\tTimes"]}, '{"organisation": "New York Times"}', (1, 1, 1)),
        ({"x": ["😀", "a}b{", 'say "}"']}, '{"x": ["a}b{", "say \\"}\\"", "\\ud83d\\ude00"]}', (3, 3, 3)),
        ({"年份": [1998, "2003"], "价": [2.5]}, '{"年份": ["1998", 2003], "价": "2.5"}', (3, 3, 3)),
        ({"x": ["```json"]}, '```json\n{"x": ["```json"]}\n```', (1, 1, 1)),
    ],
)
def test_counts_of_one_question(answer, completion, counted):
    found = extraction.counts(question(answer), completion)
    assert found == (*counted, True)
    assert extraction.counts(question(written(answer)), completion) == found  # the answer as text
    right, said, wanted = counted
    assert question(answer).score(completion) == (2 * right / (said + wanted) if said + wanted else 1)


def by_hand(asked: list[tuple[dict, dict | None]]) -> tuple[float, float, float]:
    """Micro-averaged precision, recall and F1 of (gold, answer), one entity after another."""
    hits = misses = extra = 0
    for gold, answer in asked:
        left = [(label, text) for label, texts in gold.items() for text in texts]
        for pair in [(label, text) for label, texts in (answer or {}).items() for text in texts]:
            if pair in left:
                left.remove(pair)
                hits += 1
            else:
                extra += 1
        misses += len(left)
    precision, recall = hits / (hits + extra), hits / (hits + misses)
    return precision, recall, 2 * precision * recall / (precision + recall)


def test_figures_of_many_questions_are_those_counted_by_hand():
    noise = random.Random(0)

    def some() -> dict[str, list[str]]:
        return {k: [noise.choice("甲乙丙丁") for _ in range(noise.randrange(4))] for k in noise.sample("abc", 2)}

    for _ in range(50):
        asked = [(some(), some() if noise.random() < 0.8 else None) for _ in range(30)]
        questions = [question(gold) for gold, _ in asked]
        responses = ["?" if answer is None else written(answer) for _, answer in asked]
        scores = [q.score(r) for q, r in zip(questions, responses, strict=True)]
        found = {result.key: result.accuracy for result in results(questions, responses, scores)}
        precision, recall, f1 = by_hand(asked)
        assert tuple(found) == KEYS
        assert [found[key].value for key in KEYS[1:3]] == [precision, recall]
        assert abs(found["extraction_f1"].value - f1) < 1e-15
        assert found["extraction_json"].correct == sum(answer is not None for _, answer in asked)
        assert all(result.low < result.value < result.high for result in found.values())


def test_the_figures_are_not_means_of_scores():
    questions = [question({"a": ["x"]}), question({"a": ["1", "2", "3"]})]
    responses = ['{"a": ["x"]}', "{}"]
    found = {r.key: r.accuracy for r in results(questions, responses, [1.0, 0.0])}
    assert (found["extraction_precision"].value, found["extraction_recall"].value) == (1, 0.25)
    assert (found["extraction_f1"].value, found["extraction_f1"].correct, found["extraction_f1"].total) == (0.4, 2, 5)


def test_a_share_of_nothing_is_left_out():
    def keys(answer: object, response: str) -> set[str]:
        return {result.key.removeprefix("extraction_") for result in results([question(answer)], [response], [0])}

    assert keys({}, "{}") == {"json"}
    assert keys(GOLD, "?") == {"f1", "recall", "json"}
    assert keys({}, written(GOLD)) == {"f1", "precision", "json"}


def test_the_interval_of_f1_counts_a_pair_once():
    """F1 lies between precision and recall; where they agree, so that it is both, its interval is theirs."""
    answers = [{"a": ["x"]}] * 40
    responses = ['{"a": ["x"]}'] * 30 + ['{"a": ["y"]}'] * 10
    found = {r.key: r.accuracy for r in results([question(a) for a in answers], responses, [0] * 40)}
    f1, precision = found["extraction_f1"], found["extraction_precision"]
    assert (f1.value, f1.low, f1.high) == (precision.value, precision.low, precision.high)
    z2, n, p = Z_95**2, 40, 0.75
    half = Z_95 * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    assert abs(f1.high - f1.low - 2 * half) < 1e-12


@pytest.mark.parametrize(
    "answer", [None, "", "张三", "[1]", ["张三"], {"人名": [["张三"]]}, {"人名": {"张三": 1}}, 3, "{"]
)
def test_an_answer_of_another_form_is_refused(tmp_path, answer):
    write_jsonl(tmp_path / "q.jsonl", [{"kind": "extraction", "prompt": "?", "answer": answer}])
    with pytest.raises(UserError, match=r"q\.jsonl:1: answer=.* must be an object like"):
        read_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize("answer", [{}, "{}", GOLD, written(GOLD), {"价": 3}])
def test_answers_as_objects_and_as_text(tmp_path, answer):
    write_jsonl(tmp_path / "q.jsonl", [{"kind": "extraction", "prompt": "?", "answer": answer}])
    (found,) = read_questions(tmp_path / "q.jsonl")
    assert isinstance(found.answer, str) and found.score(found.answer) == 1
    assert Counter(found.score(text) for text in RIGHT)[1.0] == (len(RIGHT) if "张三" in found.answer else 0)
