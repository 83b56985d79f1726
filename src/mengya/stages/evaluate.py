"""Models and held-out data -> report.html, report.md and report.json."""

from pathlib import Path
from typing import Annotated, NamedTuple

from mengya import manifest, runtime
from mengya.data import intake
from mengya.data.corpus import Corpus
from mengya.data.preferences import Preference, parse_preference, read_preferences
from mengya.data.readers import Row
from mengya.data.rendering import examples_of, render_pair
from mengya.errors import UserError
from mengya.evaluate.bits import ByteBaselines, bits_per_byte
from mengya.evaluate.preference import preference_accuracy
from mengya.evaluate.questions import ask, results
from mengya.evaluate.report import Artifact, Report, Sample, StageResult, write_report
from mengya.metrics import read_jsonl, say
from mengya.model.load import load_model, outline
from mengya.schema import Count, Input, Natural, config
from mengya.stage import Estimate, Inputs, Promise, Promises, Sources, Stage
from mengya.stages.estimates import BYTES_PER_TOKEN, rows_of_files
from mengya.stages.known import check_rows
from mengya.tasks.questions import read_questions
from mengya.tasks.task import Question, Task
from mengya.text.chat import Chat
from mengya.text.tokenizer import Tokenizer


@config
class Config:
    """Measure models and write a report."""

    models: Annotated[str | list[str], Input("model")]
    """In the order of training, e.g. ["@pretrain", "@sft", "@dpo"]."""
    corpus: Annotated[str, Input("corpus")] = "@corpus"
    questions: Annotated[str, Input("file")] | None = None
    """Held-out questions with answers, one JSON object a line; its "kind" is the task that grades it. Or sentences with
    their entities, in any shape that sft reads."""
    max_new_tokens: Count = 64
    """Longest answer to a question."""
    preferences: Annotated[str, Input("file")] | None = None
    """Held-out preference pairs."""
    heldout_bytes: Count = 1_000_000
    """About how much held-out text bits per byte are measured on; spread over all of it."""
    samples_per_kind: Natural = 3
    """Questions of each kind that the report shows with the answers of all models."""
    trust_remote_code: bool = False
    """Run the code that comes with a model whose architecture nobody else has (auto_map)."""
    title: str = "Mengya 萌芽"


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write the report; every model is measured on the same text, questions and pairs."""
    models, corpus = inputs["models"], Corpus(*inputs["corpus"])
    questions = [question for path in inputs.get("questions", []) for question in read_questions(path)]
    pairs = _read_pairs(inputs.get("preferences", []), models, out)
    texts = list(corpus.sample("heldout", config.heldout_bytes)) or corpus.first("heldout", 1)
    unigram, bigram = ByteBaselines.fit(corpus.byte_pairs()).bits_per_byte(texts)
    measured = [_measure(path, config, texts, questions, pairs) for path in models]
    report = Report(
        title=config.title,
        stages=[model.reached for model in measured],
        unigram_bits_per_byte=unigram,
        bigram_bits_per_byte=bigram,
        samples=_samples(questions, measured, config.samples_per_kind),
        curves={path.name: list(read_jsonl(log)) for path in models if (log := path / "metrics.jsonl").is_file()},
        artifacts=_artifacts([path for paths in inputs.values() for path in paths]),
        machine=runtime.describe_machine(),
        intakes=_intakes([corpus.directory, *models]),
    )
    write_report(out, report)
    say(f"  bits per byte of the baselines: unigram {unigram:.3f}, bigram {bigram:.3f}")


def _read_pairs(paths: list[Path], models: list[Path], out: Path) -> list[Preference]:
    """The pairs that all models are measured on; one that a model's chat template refuses is quarantined."""
    if not paths:
        return []
    chats = [Chat.load(model) for model in models]

    def accepted(row: Row[Preference]) -> Preference:
        for chat in chats:
            render_pair(chat, row.value)
        return row.value

    with intake.Intake(out / "quarantine.jsonl") as opened:
        rows = read_preferences([str(path) for path in paths], opened)
        pairs = list(opened.without(examples_of(accepted, rows, workers=1)))
    opened.tell()
    if not pairs:
        raise UserError("evaluate.preferences has no usable pair; correct the path or unset it")
    return pairs


class _Measured(NamedTuple):
    """What one model reached; `responses` and `scores` are in the order of the questions."""

    reached: StageResult
    responses: list[str]
    scores: list[float]


def _measure(
    path: Path, config: Config, texts: list[str], questions: list[Question], pairs: list[Preference]
) -> _Measured:
    device = runtime.pick_device()
    model = load_model(path, runtime.pick_dtype("auto", device), device, trust_remote_code=config.trust_remote_code)
    tokenizer = Tokenizer.load(path)
    metrics = {"bits_per_byte": bits_per_byte(model, tokenizer, texts).value}
    responses = ask(model, Chat(tokenizer), questions, max_new_tokens=config.max_new_tokens) if questions else []
    scores = [question.score(response) for question, response in zip(questions, responses, strict=True)]
    found = results(questions, responses, scores)
    if pairs:
        preference, metrics["preference_margin"] = preference_accuracy(model, Chat(tokenizer), pairs)
        found.append(preference)
    figures = [f"{key} {value:.4g}" for key, value in metrics.items()]
    figures += [f"{result.key} {result.accuracy.value:.1%}" for result in found]
    say(f"  {path.name}: {', '.join(figures)}")
    return _Measured(StageResult(path.name, metrics, found), responses, scores)


def _samples(questions: list[Question], measured: list[_Measured], per_kind: int) -> list[Sample]:
    """Up to `per_kind` questions of each task, spread over the file, with the response of every model."""
    of_task: dict[Task, list[int]] = {}
    for i, question in enumerate(questions):
        of_task.setdefault(question.task, []).append(i)
    picked = [i for found in of_task.values() for i in found[:: max(1, len(found) // max(per_kind, 1))][:per_kind]]
    samples = []
    for i in picked:
        responses = {model.reached.name: model.responses[i] for model in measured}
        scores = {model.reached.name: model.scores[i] for model in measured}
        samples.append(Sample(questions[i].messages()[-1]["content"], responses, questions[i].answer, scores))
    return samples


def _artifacts(paths: list[Path]) -> list[Artifact]:
    """The manifest chain from the raw files to the models."""
    artifacts = []
    for link in manifest.chain(paths):
        sources = []
        for entry in link["inputs"]:
            name = Path(entry["path"]).name if entry["artifact"] else entry["path"]
            sources.append(f"{name} ({entry['fingerprint'][:8]})")
        artifacts.append(Artifact(link["stage"], link["fingerprint"], sources, link["seconds"], link["files"]))
    return artifacts


def _intakes(directories: list[Path]) -> dict[str, dict]:
    """What was read for each artifact that says so."""
    files = {directory.name: directory / intake.FILE for directory in directories}
    return {n: manifest.read_object(f, "run its stage again") for n, f in files.items() if f.is_file()}


_TOKENS_PER_SECOND = 5_000.0
"""Of a model whose training is not part of the recipe."""
_TOKENS_PER_QUESTION = 25
_STEPS_PER_TOKEN = 4
"""Writing one token of an answer takes as long as reading this many."""


def estimate(config: Config, sources: Sources, promise: Promise) -> Estimate:
    """Scoring is about twice as fast as training."""
    questions = rows_of_files(sources.get("questions", []))
    tokens = config.heldout_bytes / BYTES_PER_TOKEN + questions * _TOKENS_PER_QUESTION * _STEPS_PER_TOKEN
    trained = [model.training for model in sources["models"] if isinstance(model, Estimate)]
    rate = max((t.tokens_per_second or 0 for t in trained if t), default=0) or _TOKENS_PER_SECOND
    return Estimate(seconds=4 + len(sources["models"]) * (1 + tokens / (2 * rate)))


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _check_models(config: Config, inputs: Promises) -> None:
    names = [Path(model.removeprefix("@")).name for model in _listed(config.models)]
    if len(set(names)) < len(names):  # the report calls them so
        raise UserError(f"models has two directories of one name ({', '.join(names)}); rename one, or leave one out")
    for model in inputs["models"]:
        if model.path is not None and model.model is not None:
            Tokenizer.load(model.path)
            outline(model.model, model.path, trust_remote_code=config.trust_remote_code)


def _check_chat(config: Config, inputs: Promises) -> None:
    if config.questions is not None or config.preferences is not None:
        for model in inputs["models"]:
            if model.template is not None:
                Chat.load(model.template)


def _check_questions(config: Config, inputs: Promises) -> None:
    for file in inputs.get("questions", []):
        if file.path is not None:
            read_questions(file.path)
        elif file.rows not in ("", "question"):
            raise UserError(f"questions={config.questions!r} has rows of another kind ({file.rows}); name another file")


def _check_preferences(config: Config, inputs: Promises) -> None:
    files = inputs.get("preferences", [])
    check_rows(files, ("preference",), parse_preference, "preferences has no usable pair")


STAGE = Stage(
    config=Config,
    run=run,
    makes=("report",),
    estimate=estimate,
    checks=(_check_models, _check_chat, _check_questions, _check_preferences),
)
