"""The report's files: complete, escaped, self-contained, and readable by machines."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mengya.evaluate import charts
from mengya.evaluate.accuracy import Result, accuracy
from mengya.evaluate.report import Artifact, Report, Sample, StageResult, measures, write_report
from mengya.tasks.task import Words

EVIL = (
    '<script>alert("x")</script><img src=https://evil.example/x onerror=y> {{ 7 * 7 }} {% raw %} `'
    + "`" * 4
    + " \x00\x1b[31m\u202e ]]> 你好"
)
FILES = [
    "accuracy.svg",
    "bits-dpo.svg",
    "bits-pretrain.svg",
    "bits_per_byte.svg",
    "loss-dpo.svg",
    "loss-pretrain.svg",
    "report.html",
    "report.json",
    "report.md",
]


def share(correct: int, total: int):
    return accuracy([i < correct for i in range(total)])


def results(**shares) -> list[Result]:
    words = {
        "facts": Words("Facts", "知识问答"),
        "addition": Words("Addition", "加法"),
        "odd": Words("x<y", "<i>小于</i>"),
    }
    notes = {name: Words(f"how {name} is graded.", f"{name}的判分。") for name in words}
    return [Result(f"{name}_accuracy", words[name], notes[name], value) for name, value in shares.items()]


def curve(steps: int) -> list[dict]:
    rows = [
        {"step": step, "loss": 8 / step, "lr": 1e-3, "grad_norm": 1.0, "tokens": 10 * step, "tokens_per_second": 5.0}
        for step in range(1, steps + 1)
    ]
    rows[3]["loss"] = math.nan
    rows[4]["loss"] = None
    rows[9]["heldout_loss"], rows[-1]["heldout_loss"] = 0.9, 0.5
    rows[-1]["heldout_bits_per_byte"] = 1.25
    return rows


INTAKE = {
    **{"rows": 4121, "used": 4000, "partly_read": 100, "quarantined": 21, "lost_turns": 0, "text_field": "正文"},
    **{"fields_read": {"正文": 4100}, "fields_not_read": {f"<b>{i}</b>": 100 for i in range(10)}, "characters": 9},
}


@pytest.fixture
def report() -> Report:
    return Report(
        title="Report <b>& $co$",
        stages=[
            StageResult("pretrain", {"bits_per_byte": 1.5, "parameters": 1000}, results(facts=share(1, 10))),
            StageResult("sft", {"bits_per_byte": 1.7}, results(facts=share(9, 10), addition=share(8, 10))),
            StageResult("dpo", {"preference_margin": math.nan}, results(facts=share(10, 10), odd=share(1, 2))),
        ],
        unigram_bits_per_byte=4.5,
        bigram_bits_per_byte=3.5,
        samples=[Sample(EVIL, {"pretrain": EVIL, "dpo": ""}, EVIL, {"pretrain": False, "dpo": True})],
        curves={"pretrain": curve(40), "dpo": curve(5000), "nothing": []},
        artifacts=[Artifact("corpus", "ab" * 32, ["raw|<file>.txt"], 61.4, {"documents.jsonl": 12_345})],
        machine="2 cores & <some> memory",
        intakes={"corpus": {f"raw|<{i}>.txt": INTAKE for i in range(30)}},
    )


class Page(HTMLParser):
    """Collects tags, attributes and text, as a browser would see them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_all_files_are_written(tmp_path: Path, report: Report) -> None:
    write_report(tmp_path / "new" / "report", report)
    assert sorted(path.name for path in (tmp_path / "new" / "report").iterdir()) == FILES


def test_the_page_escapes_what_models_say(tmp_path: Path, report: Report) -> None:
    write_report(tmp_path, report)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "iframe", "link", "object", "embed"})
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(EVIL) == 3  # prompt, answer, expected: shown as they are, jinja marks and all
    assert "Report <b>& $co$" in page.text
    assert "2 cores & <some> memory" in page.text


def test_the_page_asks_nobody_for_anything(tmp_path: Path, report: Report) -> None:
    write_report(tmp_path, report)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for _, attributes in Page(html).tags:
        assert not {"src", "srcset", "data", "action"} & set(attributes)
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_pictures_on_the_page_follow_its_theme_and_do_not_clash(tmp_path: Path, report: Report) -> None:
    write_report(tmp_path, report)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    body = html[html.index("<body>") :]
    assert body.count("<svg") == 7  # the sprout and six pictures
    assert not any(colour in body for colour in charts.CSS_NAMES)
    for used in set(re.findall(r"var\((--[\w-]+)\)", body)):
        assert f"{used}:" in html
    clips = re.findall(r'<clipPath id="([^"]*)"', body)
    assert clips and len(clips) == len(set(clips))


def test_json_for_machines(tmp_path: Path, report: Report) -> None:
    write_report(tmp_path, report)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert data["stages"]["pretrain"]["bits_per_byte"] == 1.5
    assert data["stages"]["pretrain"]["facts_accuracy"] == 0.1
    assert data["stages"]["sft"]["addition_accuracy"] == 0.8
    assert data["stages"]["dpo"]["preference_margin"] is None  # NaN
    interval = data["stages"]["dpo"]["intervals"]["facts_accuracy"]
    assert (interval["correct"], interval["total"], interval["high"]) == (10, 10, 1.0)
    # of the last stage that measured it
    assert (data["bits_per_byte"], data["facts_accuracy"], data["addition_accuracy"]) == (1.7, 1.0, 0.8)
    assert (data["unigram_bits_per_byte"], data["bigram_bits_per_byte"]) == (4.5, 3.5)
    run = data["training"]["pretrain"]
    assert (run["steps"], run["tokens"], run["tokens_per_second"]) == (40, 400, 5.0)
    assert (run["first_loss"], run["first_heldout_loss"], run["last_heldout_loss"]) == (8.0, 0.9, 0.5)
    assert run["last_heldout_bits_per_byte"] == 1.25
    assert "nothing" not in data["training"]
    assert data["samples"][0]["answers"]["pretrain"] == EVIL
    assert data["artifacts"][0]["fingerprint"] == "ab" * 32


def test_markdown_fences_samples_and_names_its_pictures(tmp_path: Path, report: Report) -> None:
    write_report(tmp_path, report)
    text = (tmp_path / "report.md").read_bytes().decode()
    for name in FILES[:6]:
        assert f"]({name})" in text
    fence = "`" * 6  # one more than the longest run in the sample
    assert text.count(f"{fence}text\n{EVIL}\n{fence}") == 3
    assert re.sub(r"```+text\n.*?\n```+", "", text, flags=re.DOTALL).count("<script") == 0
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert any(r"raw\|\<file\>.txt" in line for line in table)
    assert "100.0 %" in text and "(10/10)" in text


def test_a_report_with_next_to_nothing(tmp_path: Path) -> None:
    bare = Report("t", [StageResult("pretrain", {"bits_per_byte": 2.0}, {})], 5.0, 4.0, [], {}, [], "m")
    write_report(tmp_path, bare)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["bits_per_byte"] == 2.0
    assert not [key for key in data if key.endswith("_accuracy")]
    assert not (tmp_path / "accuracy.svg").exists()
    assert "asked one at a time" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_headings_and_notes_come_with_the_results(tmp_path: Path, report: Report) -> None:
    write_report(tmp_path, report)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    cards = text[: text.index("What it says")]
    assert "Facts知识问答 100.0 % 10 of 10" in cards and "+10.0 vs sft" in cards
    assert "Addition加法 80.0 % 8 of 10" in cards and "x<y<i>小于</i> 50.0 % 1 of 2" in cards
    assert "stage阶段bits per byte每字节比特数parameterspreference marginFacts知识问答Addition加法x<y" in text
    for name in ("facts", "addition", "odd"):
        assert f"how {name} is graded." in text and f"{name}的判分。" in text
    head = (tmp_path / "report.md").read_text(encoding="utf-8").split("\n\n")[3].splitlines()[0]
    assert head.endswith(r"| Facts · 知识问答 | Addition · 加法 | x\<y · \<i\>小于\</i\> |")


def test_scores_between_wrong_and_right(tmp_path: Path) -> None:
    scored = results(facts=accuracy([0.25, 1, 0.5]))
    sample = Sample("?", {"a": "x", "b": "y", "c": "z"}, "w", {"a": 0.25, "b": True, "c": 0.0})
    write_report(tmp_path, Report("t", [StageResult("a", {}, scored)], 5.0, 4.0, [sample], {}, [], "m"))
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["facts_accuracy"] == pytest.approx(1.75 / 3) and data["samples"][0]["correct"]["a"] == 0.25
    assert "1.75 of 3" in (tmp_path / "report.html").read_text(encoding="utf-8")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "(1.75/3)" in text and "**a** 25.0 %" in text and "**b** ✓" in text and "**c** ✗" in text


def test_half_a_surrogate_does_not_cost_the_report(tmp_path: Path, report: Report) -> None:
    odd = Sample("\ud83d", {"sft": "ok"})
    write_report(tmp_path, Report(**{**vars(report), "samples": [odd]}))
    assert "ok" in (tmp_path / "report.html").read_bytes().decode()


def test_the_same_report_gives_the_same_files(tmp_path: Path, report: Report) -> None:
    write_report(tmp_path / "a", report)
    write_report(tmp_path / "b", report)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_long_run_stays_a_small_picture() -> None:
    assert len(charts.training_curve("sft", curve(20_000))) < 300_000


@pytest.mark.parametrize("name", ["预训练", "a$b$", "a_b^c"])
def test_odd_stage_names_are_drawn_without_a_warning(name: str, recwarn: pytest.WarningsRecorder) -> None:
    charts.training_curve(name, curve(10))
    charts.bits_chart({"unigram": 4.0}, {name: 2.0})
    charts.bits_curve(name, curve(10), {"unigram": 4.0})
    charts.accuracy_chart({name: {"k": share(1, 2)}}, {"k": name})
    assert [str(warning.message) for warning in recwarn] == []


def test_a_run_that_diverged_at_once_is_still_drawn() -> None:
    charts.training_curve("sft", [{"step": 1, "loss": math.nan, "lr": 1e-3}])
    charts.bits_chart({"unigram": 4.0}, {"sft": math.nan})
    charts.training_curve("sft", [{"step": 1, "loss": 2.0, "lr": 1e-3, "heldout_loss": 2.0}])


def test_the_curve_ignores_a_spike() -> None:
    values = charts.np.ones(100)
    values[50] = 1000.0
    assert charts.running_median(values, 2).max() == 1.0
    assert charts.running_median(values, 0).max() == 1000.0


def test_what_was_read_is_shown_for_each_file(report, tmp_path):
    write_report(tmp_path, report)
    page, markdown = ((tmp_path / f"report.{kind}").read_text("utf-8") for kind in ("html", "md"))
    assert "Data that was read" in page and "<b>0</b> (100)" not in page and "&lt;b&gt;0&lt;/b&gt; (100)" in page
    assert "4,121" in markdown and "and 2 more" in markdown and "and 10 more files" in markdown
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["intakes"]["corpus"]["raw|<0>.txt"] == INTAKE


def test_what_an_earlier_stage_lacks_stands_where_a_later_one_has_it(report: Report) -> None:
    first = results(facts=share(1, 2), odd=share(1, 2))
    stages = [
        StageResult("a", {}, first),
        StageResult("b", {}, [*results(facts=share(1, 2), addition=share(1, 2)), first[1]]),
    ]
    found = measures(dataclasses.replace(report, stages=stages))
    assert list(found) == ["facts_accuracy", "addition_accuracy", "odd_accuracy"]
    assert list(measures(dataclasses.replace(report, stages=stages[:1]))) == ["facts_accuracy", "odd_accuracy"]
