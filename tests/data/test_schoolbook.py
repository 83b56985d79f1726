"""The embedded schoolbook: deterministic, complete, and disjoint from its own held-out questions."""

import hashlib
import itertools
import json
import random
import re
from collections import Counter, defaultdict

import pytest

from mengya.data.schoolbook import arithmetic, topics, unknown, write
from mengya.data.schoolbook.stories import load_plots
from mengya.data.schoolbook.tables import load
from mengya.tasks import talk
from mengya.tasks.task import Question

FILES = ("text.jsonl", "conversations.jsonl", "preferences.jsonl", "questions.jsonl", "heldout_preferences.jsonl")
TRAINING = FILES[:3]
BY_KIND = ("identity", "first")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    out = tmp_path_factory.mktemp("schoolbook")
    counts = write(out, seed=1)
    rows = {
        name: [json.loads(line) for line in (out / name).read_text(encoding="utf-8").split("\n")[:-1]] for name in FILES
    }
    assert counts == {name: len(rows[name]) for name in FILES}
    return out, rows


@pytest.fixture(scope="module")
def relations():
    return load()


def strings(value):
    """Every string inside a row, without the role names."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [text for key, item in value.items() if key != "role" for text in strings(item)]


@pytest.fixture(scope="module")
def training_lines(book):
    return list(
        dict.fromkeys(line for f in TRAINING for row in book[1][f] for s in strings(row) for line in s.split("\n"))
    )


def bare(text):
    """Without punctuation, spaces and case: what is left when two phrasings differ in nothing else."""
    return re.sub(r"[\W_]+", "", text).lower()


def sentences(text):
    return [sentence for sentence in re.split(r"(?<=[。.])\s*|\n|：", text) if sentence]


def prompt_text(prompt):
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def test_same_seed_same_bytes_and_another_seed_other_bytes(book, tmp_path):
    def digests(folder):
        return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES]

    write(tmp_path / "again", seed=1)
    write(tmp_path / "other", seed=2)
    assert digests(tmp_path / "again") == digests(book[0])
    assert not set(digests(tmp_path / "other")) & set(digests(book[0]))


def test_rows_have_their_shapes(book):
    rows = book[1]
    assert all(set(row) == {"text"} and row["text"].strip() for row in rows["text.jsonl"])
    for row in rows["conversations.jsonl"]:
        roles = [message["role"] for message in row["messages"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns and turns == ["user", "assistant"] * (len(turns) // 2)
    for name in ("preferences.jsonl", "heldout_preferences.jsonl"):
        for row in rows[name]:
            assert set(row) == {"prompt", "chosen", "rejected"} and row["chosen"] != row["rejected"]
    for row in rows["questions.jsonl"]:
        if row["kind"] in BY_KIND:
            assert set(row) - {"answer"} in ({"kind", "id", "prompt", "expect"}, {"kind", "id", "prompt", "accept"})
        elif row["kind"] == "grounded":
            assert set(row) == {"kind", "id", "prompt", "passages", "answer"}
        else:
            assert set(row) == {"kind", "id", "prompt", "answer", "accept"}
    everything = [text for name in FILES for row in rows[name] for text in strings(row)]
    assert all(text == text.strip() and text for text in everything)
    assert not [text for text in everything if re.search(r"\{[a-z]+\}", text)], "a slot was left open"


def test_sizes(book):
    out, rows = book
    assert 3_000_000 < (out / "text.jsonl").stat().st_size < 3_600_000
    assert 17_000 < len(rows["conversations.jsonl"]) <= 20_000
    turns = [sum(m["role"] == "user" for m in row["messages"]) for row in rows["conversations.jsonl"]]
    assert max(turns) <= 4 and 0.15 < sum(n > 1 for n in turns) / len(turns) < 0.3
    kinds = Counter(row["kind"] for row in rows["questions.jsonl"])
    assert (kinds["fact"], kinds["addition"], kinds["unknown"]) == (400, 200, 60)
    assert 40 <= kinds["identity"] <= 60 and 180 <= kinds["first"] <= 240
    assert (len(rows["preferences.jsonl"]), len(rows["heldout_preferences.jsonl"])) == (3000, 300)
    text = "".join(row["text"] for row in rows["text.jsonl"])
    assert 0.05 < sum(c.isascii() and c.isalpha() for c in text) / len(text.encode()) < 0.12


def test_facts_are_well_formed(relations):
    assert sum(len(relation.facts) for relation in relations) >= 1000 and len(relations) >= 35
    for relation in relations:
        subjects = [fact.id for fact in relation.facts]
        assert len(subjects) == len(set(subjects)), f"{relation.name}: one subject with two answers"
        assert len(relation.say) >= 3 and len(relation.train) >= 8 and len(relation.held) >= 2, relation.name
        assert all(fact.answer and fact.subject != fact.answer for fact in relation.facts)


def test_no_question_has_two_answers(relations):
    answers = defaultdict(set)
    for relation in relations:
        for fact in relation.facts:
            for template in relation.train + relation.held:
                answers[bare(fact.fill(template))].add(fact.answers)
    assert not {question: found for question, found in answers.items() if len(found) > 1}


def test_every_fact_is_told_and_asked_often_enough(book, relations):
    prose = [row["text"] for row in book[1]["text.jsonl"]]
    told_in_all = Counter(sentence for text in prose for sentence in sentences(text))
    asked = Counter(
        m["content"] for row in book[1]["conversations.jsonl"] for m in row["messages"] if m["role"] == "user"
    )
    for relation in relations:
        for fact in relation.facts:
            ways = {fact.fill(way) for way in [*relation.say, *relation.reply]}
            told = {way: told_in_all[sentences(way)[0]] for way in ways}
            assert sum(told.values()) >= 6 and sum(count > 0 for count in told.values()) >= 3, (fact, told)
            wordings = 5 if len(relation.facts) >= 40 else 8
            assert sum(fact.fill(template) in asked for template in relation.train) >= wordings, fact
            assert sum(fact.fill(template) in asked for template in relation.phrases["ask"]) >= wordings // 2, fact


def test_every_relation_is_asked_in_many_words_of_its_own(book, relations):
    """At least eight wordings beyond the frames that all relations share, all of them used, in talk and in prose."""
    talk = Counter(m["content"] for row in book[1]["conversations.jsonl"] for m in row["messages"])
    prose = "\n".join(row["text"] for row in book[1]["text.jsonl"])
    for relation in relations:
        own = {bare(template) for template in relation.phrases["ask"]}
        shared = {bare(t) for t in relation.train if t not in relation.phrases["ask"]}
        assert len(own) == len(relation.phrases["ask"]) and len(own - shared) >= 8, relation.name
        questions = {fact.fill(template) for fact in relation.facts for template in relation.train}
        assert sum(talk[question] for question in questions) >= min(80, 2 * len(questions)), relation.name
        for template in relation.phrases["ask"]:
            assert any(talk[fact.fill(template)] for fact in relation.facts), (relation.name, template)
        read = sum(any(fact.fill(t) in prose for fact in relation.facts) for t in relation.phrases["ask"])
        assert read >= min(8, 1 + len(relation.facts)), (relation.name, read)


def test_held_out_phrasings_never_train(book, relations, training_lines):
    """By the literal prompts, and by patterns in which the subject may be anything."""
    held = [row["prompt"] for row in book[1]["questions.jsonl"] if row["kind"] not in ("addition", *BY_KIND)]
    held += [prompt_text(row["prompt"]) for row in book[1]["heldout_preferences.jsonl"] if "=" not in row["chosen"]]
    every_line = "\n".join(bare(line) for line in training_lines)
    assert not [prompt for prompt in held if bare(prompt) in every_line]

    def loosen(text):
        return re.sub(r"[^\w\s]+", "，", text).strip("，")

    lines = "\n".join(loosen(line) for line in training_lines)
    for relation in relations:
        for template in relation.held:
            for filled in {
                fact.fill(template.replace("{s}", "§")) for fact in relation.facts
            }:  # the other columns as they are
                parts = [re.sub(r"[^\w\s]+", "，", part) for part in filled.split("§")]
                if all(part.strip("，") in lines for part in parts):
                    found = re.search(r"[^，\n]{1,30}".join(map(re.escape, parts)).strip("，"), lines)
                    assert not found, (relation.name, template, found and found.group())


def test_held_out_operands_never_train(training_lines):
    """No training line adds a held-out pair, whatever words or order it uses."""
    sign = re.compile(r"(?<!\d)(\d\d)\s*(?:\+|加上|加|plus|and|和|与)\s*(\d\d)(?!\d)")
    near = re.compile(r"(?<!\d)\d\d(?!\d)")
    adding = re.compile(r"[+加又再共和]|卖出|给了|plus|add")
    steps = re.compile(r"：个位.*?得\d+|: ones .*?so \d+")
    checked = 0
    for line in training_lines:
        for a, b in sign.findall(line):
            checked += 1
            assert not arithmetic.is_held_out(int(a), int(b)), line
        if "月" not in line and "、" not in line and not line.startswith("["):  # a passage adds nothing
            asked = re.sub(r"=\d+", "", steps.sub("|", line))  # without the steps in between and the results
            for part in filter(adding.search, re.split(r"[。？]", asked)):
                for a, b in itertools.pairwise(int(n) for n in near.findall(part)):
                    assert not arithmetic.is_held_out(a, b), line
    assert checked > 10_000


def test_held_out_questions_use_held_out_operands_and_names(book, training_lines):
    held = [row for row in book[1]["questions.jsonl"] if row["kind"] == "addition"]
    for row in held:
        a, b = (int(n) for n in re.findall(r"\d+", row["prompt"]))
        assert arithmetic.is_held_out(a, b) and row["answer"] == str(a + b)
    share = len(arithmetic.HELD_PAIRS) / (90 * 91 / 2)
    assert 0.08 < share < 0.12 and len(arithmetic.TRAIN_PAIRS) > 7000
    text = "\n".join(training_lines)
    asked = [
        prompt_text(row["prompt"]) for row in book[1]["heldout_preferences.jsonl"] if row["chosen"] in unknown.HONEST
    ]
    everything = bare(text)
    assert len(asked) == 90 and all(bare(prompt) not in everything for prompt in asked)
    names = {row["id"].split("/")[2] for row in book[1]["questions.jsonl"] if row["kind"] == "unknown"}
    assert len(names) > 50 and all(unknown.is_held_out(name) and name not in text for name in names)


def test_questions_can_be_judged(book):
    rows = book[1]["questions.jsonl"]
    answers = defaultdict(set)
    for row in rows:
        if row["kind"] in (*BY_KIND, "grounded"):
            continue
        answers[row["prompt"]].add(row["answer"])
        assert len(row["accept"]) == len(set(row["accept"]))
        if row["kind"] == "unknown":
            assert all(row["answer"] in text for text in row["accept"])
        else:
            assert row["answer"] in row["accept"]
    assert all(len(found) == 1 for found in answers.values())
    assert len({row["id"] for row in rows}) == len(rows)
    relations_asked = Counter(row["id"].split("/")[1] for row in rows if row["kind"] == "fact")
    assert set(relations_asked) == {relation.name for relation in load()}


def test_taught_answers_are_accepted(relations):
    for relation in relations:
        for fact in relation.facts:
            assert {fact.answer, *(fact.fill(reply) for reply in relation.reply)} <= set(relation.accept(fact))


@pytest.mark.parametrize(("a", "b"), [(37, 45), (10, 10), (99, 99), (23, 54), (68, 12), (95, 5 + 10)])
def test_worked_additions_are_right_and_wrong_ones_wrong(a, b):
    for lang in ("zh", "en"):
        line = arithmetic.worked(a, b, lang=lang)
        assert all(
            sum(int(n) for n in left.split("+")) == int(right) for left, right in re.findall(r"([\d+]+)=(\d+)", line)
        )
        assert re.findall(r"\d+", line)[-1] == str(a + b)
    assert abs(int(re.findall(r"\d+", arithmetic.wrong(a, b))[-1]) - a - b) == 10


def test_every_equation_in_training_text_is_true(training_lines, book):
    rejected = {line for row in book[1]["preferences.jsonl"] for line in row["rejected"].split("\n")}
    equation = re.compile(r"(?<![\d+\-×])(\d+(?:[+\-×]\d+)+)=(\d+)")
    found = 0
    for line in training_lines:
        if line not in rejected:
            for left, right in equation.findall(line):
                found += 1
                assert eval(left.replace("×", "*")) == int(right), line
    assert found > 13_000


def test_preferences_reject_what_is_wrong(book, relations):
    """A rejected sentence never states a fact of the tables, and the kinds keep their shares."""
    true = {text for relation in relations for fact in relation.facts for text in relation.accept(fact)}
    kinds = Counter()
    said_first = {text for topic in topics.load_topics().values() for group in topic.user for text in group}
    for row in book[1]["preferences.jsonl"]:
        if prompt_text(row["prompt"]) in said_first:
            kinds["fitting"] += 1
            continue
        assert row["rejected"] not in true, row
        honest, silent = row["chosen"] in unknown.HONEST, row["rejected"] in unknown.HONEST
        assert honest or silent or row["chosen"] in true or "=" in row["chosen"]
        kinds["honest" if honest else "known" if silent else "addition" if "=" in row["chosen"] else "fact"] += 1
    assert kinds == {"honest": 900, "fact": 750, "addition": 450, "known": 450, "fitting": 450}


def test_stories_fill_their_slots_and_differ(book):
    plots = load_plots("zh") + load_plots("en")
    assert len(plots) >= 15 and all(plot.about and len(plot.steps) >= 5 for plot in plots)
    texts = [row["text"] for row in book[1]["text.jsonl"]]
    assert len(set(texts)) > 0.95 * len(texts)


def test_patterns_stand_for_texts():
    assert topics.expand("{a|b|}c{d|e}") == ["acd", "ace", "bcd", "bce", "cd", "ce"]
    assert topics.expand("{about}?") == ["{about}?"]
    assert topics.patterns("x{a|b}|y|{s}{1|}") == [["xa", "xb"], ["y"], ["{s}1", "{s}"]]


def test_what_people_say_first_is_held_out_by_its_wording(book):
    """And names, and questions for the next line of a poem."""
    said = {bare(m["content"]) for row in book[1]["conversations.jsonl"] for m in row["messages"]}
    chosen = {bare(prompt_text(row["prompt"])) for row in book[1]["preferences.jsonl"]}
    rows = [row for row in book[1]["questions.jsonl"] if row["kind"] in BY_KIND]
    assert not [row["prompt"] for row in rows if bare(row["prompt"]) in said | chosen]
    text = bare("".join(line for name in TRAINING for row in book[1][name] for line in strings(row)))
    for names in topics.load_names():
        for name in (*names.names["zh"], *names.names["en"]):
            assert topics.is_held_out(name) == (bare(name) not in text), name


def test_a_wording_has_one_kind_of_answer(relations):
    kinds = defaultdict(set)
    for topic in topics.load_topics().values():
        for text in [text for group in topic.user for text in group] + topic.held:
            kinds[bare(text)].add(topic.kind or topic.name)
    assert not {text: found for text, found in kinds.items() if len(found) > 1}
    about = {"about_name": "name", "about_kind": "model", "about_maker": "maker"}
    for relation in relations:
        for template in relation.train + relation.held if "{s}" not in relation.phrases["ask"][0] else []:
            assert kinds.get(bare(template), {about.get(relation.name)}) == {about.get(relation.name)}, template


def test_names_that_are_not_taught_are_nowhere_in_the_tables(relations):
    taught = {text for r in relations for fact in r.facts for text in (fact.subject, *fact.answers)}
    taught |= {text.strip("《》") for text in taught}
    for names in topics.load_names():
        assert not taught & {*names.names["zh"], *names.names["en"]}
        assert sum(map(len, names.names.values())) > 150


def test_poems_are_whole():
    for poem in topics.load_poems():
        assert len(poem.lines) == 4 and len({len(line) for line in poem.lines} - {3}) == 1, poem.title


def test_right_answers_are_right_and_those_of_other_topics_wrong(book):
    """For each held-out question: what training answers to another topic of its language does not pass."""
    itself = ("name", "maker", "model", "greeting")
    alike = {("joke", "story"), *itertools.product(itself, itself)}
    rng = random.Random(0)
    asked = [topic for topic in topics.load_topics().values() if topic.held]
    answers = {kind: [topics.answer(rng, t) for t in asked if t.kind == kind for _ in range(30)] for kind in talk.KINDS}
    for kind in talk.KINDS:
        question = Question(talk.TASKS[1], "x", {"kind": "first", "prompt": "x", "expect": kind})
        assert answers[kind] and all(question.score(text) == 1 for text in answers[kind]), kind
        others = [a for other, found in answers.items() if other != kind and (kind, other) not in alike for a in found]
        if kind == "talk":  # a chat about nothing holds "I", as most sentences do
            others = [a for a in others if re.search("[\u4e00-\u9fff]", a)]
        passed = [a for a in others if question.score(a) == 1]
        assert len(passed) <= 0.06 * len(others), (kind, passed[:3])
