"""A task added in one file and one entry of the list: graded, reported, and the same numbers as a reward."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
import torch

import mengya as package
from mengya import runtime
from mengya.infer.engine import Engine
from mengya.infer.generate import generate
from mengya.infer.request import Request, Sampling
from mengya.model.load import load_model
from mengya.tasks import TASKS
from mengya.tasks.questions import read_questions
from mengya.text.chat import Chat

from ..conftest import write_jsonl

RIDDLE = """
from mengya.tasks.task import Task, Words, check_text

def check(row):
    check_text(row, "wish")

def grade(question, completion):
    return len(set(completion) & set(question.row["wish"])) / len(set(question.row["wish"]))

def messages(question):
    return [{"role": "system", "content": "riddles"}, {"role": "user", "content": question.row["prompt"] + " ->"}]

note = Words("the share of the wished letters.", "所求字母出现的比例。")
TASK = Task("riddle", "riddle_score", Words("Riddles", "谜语"), note, check, grade, messages)
"""
ADD = (
    "import sys; sys.path.insert(0, '.'); import riddle; from mengya.tasks import TASKS; TASKS['riddle'] = riddle.TASK"
)
WISHES = "the cat sat on a mat", "mat", "home", "天地", "xyz"
MODELS = 'evaluate.models=["models/one", "models/two"]'
ROWS = [{"kind": "riddle", "prompt": f"what? {i}", "wish": wish} for i, wish in enumerate(WISHES)]


@pytest.fixture
def talkative(grown, tiny_model, chat) -> Path:
    """`grown`, and below models/ two random models that say something before they stop."""
    for seed, name in enumerate(("one", "two")):
        model = tiny_model(tie_word_embeddings=False)
        model.initialize(torch.Generator().manual_seed(seed))
        with torch.no_grad():
            model.lm_head.weight[sorted(chat.stop_ids)] = 0  # never the likeliest among 300 random logits
        model.save(grown / "models" / name)
        chat.tokenizer.save(grown / "models" / name)
    return grown


def evaluated(grown: Path, mengya, rows: list[dict], *overrides: str, setup: str = "") -> tuple[dict, str, str]:
    """report.json, the text of report.html, and report.md of a run in which only `evaluate` is done again."""
    shutil.rmtree(grown / "run" / "evaluate")
    write_jsonl(grown / "questions.jsonl", rows)
    result = mengya("run", "whole.toml", *overrides, "--out", "run", setup=setup)
    assert result.code == 0, result.err
    html = (grown / "run" / "evaluate" / "report.html").read_text(encoding="utf-8")
    text = " ".join(unescape(re.sub("<[^>]*>", " ", html[html.index("<main>") :])).split())
    markdown = (grown / "run" / "evaluate" / "report.md").read_text(encoding="utf-8")
    return json.loads((grown / "run" / "evaluate" / "report.json").read_text(encoding="utf-8")), text, markdown


def rewards(model_dir: Path, questions: list) -> list[float]:
    """As reinforcement learning asks and rewards: prompts as ids, completions, scores."""
    device = runtime.pick_device()
    model = load_model(model_dir, runtime.pick_dtype("auto", device), device)
    chat = Chat.load(model_dir)
    prompts = [chat.encode(question.messages(), add_generation_prompt=True)[0] for question in questions]
    requests = [Request(prompt=prompt, sampling=Sampling(temperature=0, max_new_tokens=64)) for prompt in prompts]
    completions = generate(Engine(model, chat.tokenizer, chat.stop_ids), requests)
    return [question.score(choice.text) for question, (choice,) in zip(questions, completions, strict=True)]


def test_a_new_task_is_graded_reported_and_a_reward(talkative, mengya, monkeypatch):
    (talkative / "riddle.py").write_text(RIDDLE, encoding="utf-8")
    report, page, markdown = evaluated(talkative, mengya, ROWS, MODELS, setup=ADD)
    assert "Riddles 谜语" in page and "Riddles: the share of the wished letters. 谜语：所求字母出现的比例。" in page
    assert "| Riddles · 谜语 |" in markdown and "what? 0 ->" in page
    assert not [word for word in ("Facts", "Addition", "Honesty", "知识问答") if word in page]
    assert [key for key in report if key.endswith(("_accuracy", "_score"))] == ["riddle_score"]

    namespace: dict = {}
    exec(RIDDLE, namespace)
    monkeypatch.setitem(TASKS, "riddle", namespace["TASK"])
    questions = read_questions(talkative / "questions.jsonl")
    for name, figures in report["stages"].items():
        scores = rewards(talkative / "models" / name, questions)
        assert figures["riddle_score"] == sum(scores) / len(scores)
        shown = {sample["prompt"]: sample["correct"][name] for sample in report["samples"]}
        asked = {question.messages()[-1]["content"]: score for question, score in zip(questions, scores, strict=True)}
        assert shown and shown.items() <= asked.items()
    assert any(0 < figures["riddle_score"] < 1 for figures in report["stages"].values())
    assert report["riddle_score"] == report["stages"]["two"]["riddle_score"]


def test_tasks_of_ones_own_questions_file(grown, mengya):
    choice = {"kind": "choice", "prompt": "cat?", "choices": ["mat", "home"], "answer": "B"}
    rows = [
        choice,
        {"kind": "exact", "prompt": "cat?", "answer": "mat"},
        {"kind": "addition", "prompt": "1+1", "answer": "2"},
    ]
    report, page, _ = evaluated(grown, mengya, rows)
    keys = [key for key in report if key.endswith("_accuracy")]
    assert keys == ["choice_accuracy", "exact_accuracy", "addition_accuracy"]  # the order of the file
    assert (
        page.index("Multiple choice 选择题") < page.index("Exact answers 标准答案") < page.index("Addition 两位数加法")
    )
    assert "cat? A. mat B. home" in page and "expected · 标准答案：B" in page


def test_a_report_without_questions(grown, mengya):
    shutil.rmtree(grown / "run" / "evaluate")
    recipe = (grown / "whole.toml").read_text().replace('questions = "questions.jsonl"\n', "")
    (grown / "whole.toml").write_text(recipe)
    assert mengya("run", "whole.toml", "--out", "run").code == 0
    report = json.loads((grown / "run" / "evaluate" / "report.json").read_text(encoding="utf-8"))
    assert report["bits_per_byte"] > 0 and report["samples"] == []
    assert not [key for key in report if key.endswith("_accuracy")]


def test_a_grader_that_raises_later_costs_no_traceback(talkative, mengya):
    """A grader may pass the trial of the questions file and still fail on what a model says."""
    fails = "if completion not in ('', 'never'): raise RuntimeError('odd')\n    return completion == 'never'"
    start, end = RIDDLE.index("return len"), RIDDLE.index("\n\ndef messages")
    (talkative / "riddle.py").write_text(RIDDLE[:start] + fails + RIDDLE[end:], encoding="utf-8")
    shutil.rmtree(talkative / "run" / "evaluate")
    write_jsonl(talkative / "questions.jsonl", [{**ROWS[0], "answer": "never"}])
    result = mengya("run", "whole.toml", MODELS, "--out", "run", setup=ADD)
    message = (
        "mengya: task 'riddle', question 'questions.jsonl:1': the grader raised RuntimeError: odd; correct the grader"
    )
    assert result.code == 2 and result.err.startswith(message) and "Traceback" not in result.err
    assert not (talkative / "run" / "evaluate").exists()


def test_names_of_the_schoolbook_stay_in_its_folder():
    """Its tasks, keys, headings and questions. The corpus stage has a key that adds it; the list of tasks names it."""
    source = Path(package.__file__).parent
    names = ["facts_accuracy", "addition_accuracy", "unknown_accuracy", "知识问答", "两位数加法", "你是谁", "首都"]
    may_say_schoolbook = {"tasks/__init__.py", "stages/corpus.py"}
    for path in (*source.rglob("*.py"), *source.rglob("*.jinja")):
        name, text = path.relative_to(source).as_posix(), path.read_text(encoding="utf-8")
        if not name.startswith(("data/schoolbook/", "tasks/schoolbook.py")):
            assert not [word for word in names if word in text], name
            assert "schoolbook" not in text.lower() or name in may_say_schoolbook, name
