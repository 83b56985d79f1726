"""The report: one self-contained page to show around, Markdown with pictures beside it, and JSON for machines."""

import dataclasses
import json
import re
import statistics
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mengya.evaluate import charts
from mengya.evaluate.accuracy import Accuracy, Result
from mengya.metrics import finite, format_count, format_seconds

BITS = "bits_per_byte"
HELDOUT_BITS = "heldout_bits_per_byte"
CURVES = ("bits-", "loss-")  # how the file names of training curves start


@dataclass(frozen=True)
class StageResult:
    """What one model reached. `name` e.g. "sft"; `metrics` e.g. {"bits_per_byte": 1.9}."""

    name: str
    metrics: Mapping[str, float]
    results: Sequence[Result]

    @property
    def accuracies(self) -> dict[str, Accuracy]:
        return {result.key: result.accuracy for result in self.results}


@dataclass(frozen=True)
class Sample:
    """One prompt, the answer of each stage (stage name -> text) and, if graded, the right answer and the scores."""

    prompt: str
    answers: Mapping[str, str]
    expected: str | None = None
    correct: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A link of the manifest chain. `inputs` name raw files or other artifacts; `files` maps names to bytes."""

    name: str
    fingerprint: str
    inputs: Sequence[str]
    seconds: float
    files: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """All that the report shows. Stages in the order of training; `curves` holds the rows of each metrics.jsonl.

    Rows that also have `heldout_bits_per_byte` (measured on the way) are drawn against the byte baselines.
    """

    title: str
    stages: Sequence[StageResult]
    unigram_bits_per_byte: float
    bigram_bits_per_byte: float
    samples: Sequence[Sample]
    curves: Mapping[str, Sequence[Mapping[str, Any]]]
    artifacts: Sequence[Artifact]
    machine: str
    intakes: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Artifact -> file that was read for it -> what became of its rows, as in intake.json."""


def write_report(out: Path, report: Report) -> None:
    """Write report.html, report.md with its *.svg, and report.json into `out`, made if missing."""
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw(report)
    for name, svg in pictures.items():
        _write(out / name, svg)
    data = json.dumps(finite(to_json(report)), ensure_ascii=False, indent=2, allow_nan=False)
    _write(out / "report.json", data + "\n")
    _write(out / "report.md", to_markdown(report, pictures))
    _write(out / "report.html", to_html(report, pictures))


def _write(path: Path, text: str) -> None:
    # JSON allows half a surrogate pair, e.g. in a question; the report is written nevertheless.
    path.write_bytes(text.encode("utf-8", errors="replace"))


def draw(report: Report) -> dict[str, str]:
    """File name -> SVG, in the order of the report; a picture without data is left out."""
    bits = {stage.name: stage.metrics[BITS] for stage in report.stages if BITS in stage.metrics}
    baselines = {"unigram": report.unigram_bits_per_byte, "bigram": report.bigram_bits_per_byte}
    pictures = {"bits_per_byte.svg": charts.bits_chart(baselines, bits)}
    measured = {stage.name: stage.accuracies for stage in report.stages if stage.accuracies}
    if measured:
        names = {key: result.heading.english for key, result in measures(report).items()}
        pictures["accuracy.svg"] = charts.accuracy_chart(measured, names)
    for name, rows in report.curves.items():
        file_name = re.sub(r"[^A-Za-z0-9_-]", "_", name)
        if any(charts.is_number(row.get(HELDOUT_BITS)) for row in rows):
            pictures[f"bits-{file_name}.svg"] = charts.bits_curve(name, rows, baselines)
        if rows:
            pictures[f"loss-{file_name}.svg"] = charts.training_curve(name, rows)
    return pictures


def measures(report: Report) -> dict[str, Result]:
    """The accuracies that some stage has, by key: for heading and note.

    In the order in which they first occur, but one that earlier stages lack stands before what follows it in its own.
    """
    found: dict[str, Result] = {}
    order: list[str] = []
    for stage in report.stages:
        for i, result in enumerate(stage.results):
            if result.key not in found:
                found[result.key] = result
                following = (order.index(later.key) for later in stage.results[i + 1 :] if later.key in order)
                order.insert(next(following, len(order)), result.key)
    return {key: found[key] for key in order}


def to_json(report: Report) -> dict[str, Any]:
    """report.json. Accuracies are plain shares; their counts and intervals are under `intervals`.

    Bits per byte (null if no stage measured them) and every accuracy are also at the top, from the last stage with it.
    """
    stages: dict[str, dict[str, Any]] = {}
    for stage in report.stages:
        shares = {key: result.value for key, result in stage.accuracies.items()}
        intervals = {key: dataclasses.asdict(result) for key, result in stage.accuracies.items()}
        stages[stage.name] = {**stage.metrics, **shares, "intervals": intervals}
    keys = (BITS, *measures(report))
    headline = {key: next((s[key] for s in reversed(stages.values()) if key in s), None) for key in keys}
    return {
        "title": report.title,
        **headline,
        "unigram_bits_per_byte": report.unigram_bits_per_byte,
        "bigram_bits_per_byte": report.bigram_bits_per_byte,
        "stages": stages,
        "training": {name: summary(rows) for name, rows in report.curves.items() if rows},
        "samples": [dataclasses.asdict(sample) for sample in report.samples],
        "artifacts": [dataclasses.asdict(artifact) for artifact in report.artifacts],
        "machine": report.machine,
        "intakes": report.intakes,
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Steps, tokens, median speed, first and last figures of a training run; None where nothing was measured."""
    result: dict[str, Any] = {"steps": rows[-1]["step"], "tokens": rows[-1].get("tokens")}
    speeds = [row["tokens_per_second"] for row in rows if charts.is_number(row.get("tokens_per_second"))]
    result["tokens_per_second"] = statistics.median(speeds) if speeds else None
    for key in ("loss", "heldout_loss", HELDOUT_BITS):
        values = [row[key] for row in rows if charts.is_number(row.get(key))]
        result[f"first_{key}"], result[f"last_{key}"] = (values[0], values[-1]) if values else (None, None)
    return result


# -- tables and words that the page and the Markdown share


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def figure(key: str, value: float) -> str:
    """A metric as people read it; whole numbers with separators."""
    if key.endswith("_share"):
        return percent(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def verdict(score: float) -> str:
    """A score as a reader of samples sees it."""
    if score in (0, 1):
        return "✓" if score else "✗"
    return percent(score)


def metric_keys(report: Report) -> list[str]:
    """Keys of plain metrics that some stage has, bits per byte first."""
    present = dict.fromkeys(key for stage in report.stages for key in stage.metrics)
    return sorted(present, key=lambda key: key != BITS)


def training_rows(report: Report) -> list[list[str]]:
    """Of each training: stage, steps, tokens, tokens per second, first and last loss, first and last held-out loss."""
    table = []
    for name, rows in report.curves.items():
        if rows:
            run = summary(rows)
            numbers = [run[key] for key in ("steps", "tokens", "tokens_per_second")]
            losses = [(run[f"first_{key}"], run[f"last_{key}"]) for key in ("loss", "heldout_loss")]
            cells = ["–" if number is None else f"{number:,.0f}" for number in numbers]
            cells += ["–" if first is None else f"{first:.3f} → {last:.3f}" for first, last in losses]
            table.append([name, *cells])
    return table


_FILES_SHOWN = 20
INTAKE_HEADS = ["read for", "file", "rows", "used whole", "read partly", "quarantined", "not read", "text field"]


def intake_rows(report: Report) -> list[list[str]]:
    """Of each file that was read: see INTAKE_HEADS."""
    table = []
    for name, files in report.intakes.items():
        for path, counts in list(files.items())[:_FILES_SHOWN]:
            numbers = [f"{counts[key]:,}" for key in ("rows", "used", "partly_read", "quarantined")]
            fields = [f"{field} ({rows:,})" for field, rows in counts["fields_not_read"].items()]
            shown = ", ".join(fields[:8]) + (f" and {len(fields) - 8} more" if len(fields) > 8 else "")
            table.append([name, Path(path).name, *numbers, shown, counts["text_field"] or ""])
        if len(files) > _FILES_SHOWN:
            table.append([name, f"and {len(files) - _FILES_SHOWN:,} more files", *[""] * 6])
    return table


# -- Markdown


def to_markdown(report: Report, pictures: Mapping[str, str]) -> str:
    training_heads = ["stage", "steps", "tokens", "tokens/s", "loss", "held-out loss"]
    parts = [
        f"# {_line(report.title)}",
        _line(report.machine),
        "## Results · 结果",
        _results(report),
        "Intervals are 95 % Wilson score intervals. Bits per byte: lower is better, on held-out text; byte-level "
        f"unigram {report.unigram_bits_per_byte:.3f}, bigram {report.bigram_bits_per_byte:.3f} on the same bytes.",
        "## Training · 训练",
        _table(training_heads, training_rows(report), right=range(1, 6)),
        "## Pictures · 图",
        *(f"![{name}]({name})" for name in pictures),
    ]
    if report.samples:
        parts.append("## Samples · 样例")
    for sample in report.samples:
        parts += ["### Prompt · 问", _fenced(sample.prompt)]
        if sample.expected is not None:
            parts += ["Expected · 标准答案", _fenced(sample.expected)]
        for name, answer in sample.answers.items():
            mark = f" {verdict(sample.correct[name])}" if name in sample.correct else ""
            parts += [f"**{_line(name)}**{mark}", _fenced(answer)]
    if report.intakes:
        parts += ["## Data that was read · 读了什么", _table(INTAKE_HEADS, intake_rows(report), right=range(2, 6))]
    if report.artifacts:
        rows = []
        for made in report.artifacts:
            files = ", ".join(f"{name} ({format_count(n)}B)" for name, n in made.files.items())
            time = format_seconds(made.seconds)
            rows.append([made.name, made.fingerprint, ", ".join(made.inputs), time, files])
        chain = _table(["artifact", "fingerprint", "inputs", "time", "files"], rows, right=[3])
        parts += ["## From raw file to model · 从原文到模型", chain]
    return "\n\n".join(parts) + "\n"


def _results(report: Report) -> str:
    metrics, shares = metric_keys(report), measures(report)
    heads = ["stage · 阶段", *metrics, *(_line(" · ".join(result.heading)) for result in shares.values())]
    rows = []
    for stage in report.stages:
        cells = [figure(key, stage.metrics[key]) if key in stage.metrics else "–" for key in metrics]
        cells += [_interval(stage.accuracies[key]) if key in stage.accuracies else "–" for key in shares]
        rows.append([stage.name, *cells])
    return _table(heads, rows, right=range(1, len(heads)))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Container[int]) -> str:
    """A Markdown table; the columns with an index in `right` are aligned to the right. `heads` are Markdown already."""
    rule = ["---:" if column in right else "---" for column in range(len(heads))]
    lines = [heads, rule, *([_line(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _interval(result: Accuracy) -> str:
    low, high = 100 * result.low, 100 * result.high
    return f"{percent(result.value)} [{low:.1f}, {high:.1f}] ({round(result.correct, 2)}/{result.total})"


def _line(text: str) -> str:
    """Text as one line of Markdown that starts no markup."""
    return re.sub(r"([\\`*_\[\]<>|#&$~])", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    """Text as a code block, whatever back-ticks it contains."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


# -- the page


def to_html(report: Report, pictures: Mapping[str, str]) -> str:
    """One file that needs no other. All text is escaped: samples are model output and may contain anything."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(percent=percent, count=format_count, duration=format_seconds, verdict=verdict)
    template = resources.files("mengya.evaluate").joinpath("report.html.jinja").read_text(encoding="utf-8")
    drawn = {name: Markup(charts.themed(svg)) for name, svg in pictures.items()}
    return environment.from_string(template).render(
        report=report,
        figure=figure,
        training=training_rows(report),
        intake_heads=INTAKE_HEADS,
        intake=intake_rows(report),
        overview=[drawn[name] for name in drawn if not name.startswith(CURVES)],
        curves=[drawn[name] for name in drawn if name.startswith(CURVES)],
        colours={name: colour for colour, name in charts.CSS_NAMES.items()},
        measures=measures(report),
        metrics=metric_keys(report),
        bits_per_byte=to_json(report)[BITS],
        cards=_cards(report),
        total_seconds=sum(artifact.seconds for artifact in report.artifacts),
    )


def _cards(report: Report) -> list[dict[str, Any]]:
    """Each accuracy of the last stage that has it, and how far it is above that of the stage before."""
    cards = []
    for key, measure in measures(report).items():
        *earlier, last = [stage for stage in report.stages if key in stage.accuracies]
        result = last.accuracies[key]
        card = {"heading": measure.heading, "result": result, "correct": round(result.correct, 2), "gain": None}
        if earlier:
            card |= {"gain": result.value - earlier[-1].accuracies[key].value, "before": earlier[-1].name}
        cards.append(card)
    return cards
