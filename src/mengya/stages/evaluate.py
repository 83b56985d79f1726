"""Models and held-out data -> report.html, report.md and report.json."""

import itertools
from pathlib import Path

from mengya import manifest, runtime
from mengya.data.corpus import Corpus
from mengya.data.preferences import Preference, read_preferences
from mengya.data.quarantine import Quarantine
from mengya.errors import UserError
from mengya.evaluate.accuracy import Accuracy
from mengya.evaluate.baselines import ByteBaselines
from mengya.evaluate.bits import bits_per_byte
from mengya.evaluate.preference import preference_accuracy
from mengya.evaluate.questions import Question, accuracies, ask, grade, read_questions
from mengya.evaluate.report import Artifact, Report, Sample, StageResult, write_report
from mengya.metrics import read_jsonl, say
from mengya.model.load import load_model
from mengya.schema import Count, InputPath, InputPaths, Natural, config
from mengya.text.tokenizer import Tokenizer


@config
class Config:
    """Measure models and write a report."""

    models: InputPaths
    """In the order of training, e.g. ["@pretrain", "@sft", "@dpo"]."""
    corpus: InputPath = "@corpus"
    questions: InputPath | None = None
    """Held-out questions with answers, one JSON object a line."""
    preferences: InputPath | None = None
    """Held-out preference pairs."""
    heldout_bytes: Count = 1_000_000
    """Held-out text to measure bits per byte on, about; spread over all of it."""
    samples_per_kind: Natural = 3
    """Questions of each kind that the report shows with everyone's answers."""
    title: str = "Mengya 萌芽"


def _measure(
    path: Path, texts: list[str], questions: list[Question], pairs: list[Preference]
) -> tuple[StageResult, list[str]]:
    device = runtime.pick_device()
    model = load_model(path, runtime.pick_dtype("auto", device), device)
    tokenizer = Tokenizer.load(path)
    metrics = {"bits_per_byte": bits_per_byte(model, tokenizer, texts, max_bytes=10**18).value}
    found: dict[str, Accuracy] = {}
    responses = ask(model, tokenizer, questions) if questions else []
    found |= accuracies(questions, responses)
    if pairs:
        preference = preference_accuracy(model, tokenizer, pairs)
        found["preference_accuracy"] = preference.accuracy
        metrics["preference_margin"] = preference.margin
    figures = [f"{key} {value:.4g}" for key, value in metrics.items()]
    figures += [f"{key} {value.value:.1%}" for key, value in found.items()]
    say(f"  {path.name}: {', '.join(figures)}")
    return StageResult(path.name, metrics, found), responses


def _samples(questions: list[Question], answers: dict[str, list[str]], per_kind: int) -> list[Sample]:
    picked: list[int] = []
    for kind in dict.fromkeys(question.kind for question in questions):
        of_kind = [i for i, question in enumerate(questions) if question.kind == kind]
        picked += of_kind[:: max(1, len(of_kind) // max(per_kind, 1))][:per_kind]
    return [
        Sample(
            questions[i].prompt,
            {name: responses[i] for name, responses in answers.items()},
            questions[i].answer,
            {name: grade(questions[i], responses[i]) for name, responses in answers.items()},
        )
        for i in picked
    ]


def _artifacts(inputs: dict[str, list[Path]]) -> list[Artifact]:
    """The manifest chain from the raw files to the models."""
    links = []
    for link in manifest.chain([path for paths in inputs.values() for path in paths]):
        sources = [
            f"{Path(entry['path']).name if entry['artifact'] else entry['path']} ({entry['fingerprint'][:8]})"
            for entry in link["inputs"]
        ]
        links.append(Artifact(link["stage"], link["fingerprint"], sources, link["seconds"], link["files"]))
    return links


def run(config: Config, inputs: dict[str, list[Path]], out: Path) -> None:
    """Write the report; every model is measured on the same bytes, questions and pairs."""
    corpus = Corpus(*inputs["corpus"])
    names = [path.name for path in inputs["models"]]
    if len(set(names)) < len(names):
        raise UserError(f"evaluate.models has two directories of one name ({', '.join(names)}); rename one")
    for path in inputs["models"]:
        if not path.is_dir():
            raise UserError(f"{path} is not a directory; evaluate needs model directories")
    texts = list(corpus.sample("heldout", config.heldout_bytes)) or corpus.first("heldout", 1)
    baselines = ByteBaselines.fit(corpus.byte_pairs())
    questions = list(itertools.chain.from_iterable(read_questions(p) for p in inputs.get("questions", [])))
    pairs: list[Preference] = []
    if "preferences" in inputs:
        with Quarantine(out / "quarantine.jsonl") as quarantine:
            pairs = [row.value for row in read_preferences([str(path) for path in inputs["preferences"]], quarantine)]
        say(f"  {quarantine.summary()}")
        if not pairs:
            raise UserError("evaluate.preferences holds no usable pair; correct the path or unset it")
    results, answers = [], {}
    for path in inputs["models"]:
        result, answers[path.name] = _measure(path, texts, questions, pairs)
        results.append(result)
    curves = {
        path.name: list(read_jsonl(path / "metrics.jsonl"))
        for path in inputs["models"]
        if (path / "metrics.jsonl").is_file()
    }
    report = Report(
        title=config.title,
        stages=results,
        unigram_bits_per_byte=baselines.unigram_bits_per_byte(texts),
        bigram_bits_per_byte=baselines.bigram_bits_per_byte(texts),
        samples=_samples(questions, answers, config.samples_per_kind),
        curves=curves,
        artifacts=_artifacts(inputs),
        machine=runtime.describe_machine(),
    )
    write_report(out, report)
    say(
        f"  bits per byte of the baselines: unigram {report.unigram_bits_per_byte:.3f}, "
        f"bigram {report.bigram_bits_per_byte:.3f}"
    )
