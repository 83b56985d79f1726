"""What the training stages share: how they run, and tuning on rows that a chat template renders."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mengya import ranks
from mengya.data import intake
from mengya.data.mixture import HeldoutPart
from mengya.data.packing import PackedGroups
from mengya.data.readers import Row
from mengya.data.rendering import Example, examples_of, write_examples
from mengya.data.shards import Shards
from mengya.metrics import say
from mengya.model.language_model import LanguageModel
from mengya.model.load import load_model, outline
from mengya.schema import config
from mengya.stage import Estimate, Inputs, Promise, Promises, Sources, Stage
from mengya.stages.known import kept_template
from mengya.text.chat import Chat, TemplateName
from mengya.train.objectives import Objective
from mengya.train.run import SCRATCH, has_checkpoints, train_model
from mengya.train.settings import MODEL_CHECKS, TrainingConfig


def training_stage(
    settings: type[TrainingConfig],
    run: Callable[[Any, Inputs, Path], None],
    estimate: Callable[[Any, Sources, Promise], Estimate],
    promise: Callable[[Any, Promises], Promise],
    *checks: Callable[[Any, Promises], None],
) -> Stage:
    """A stage that fills a model directory on all ranks. The model that is trained has the shape that it promises."""

    def suits(check: Callable[[Any, LanguageModel], None], config: TrainingConfig, inputs: Promises) -> None:
        description = promise(config, inputs).model
        if description is not None:
            unknown = {"vocab_size": 1} if description.get("vocab_size") == 0 else {}
            check(config, outline(description | unknown))

    return Stage(
        config=settings,
        run=run,
        makes=("model", "tokenizer"),
        estimate=estimate,
        promise=promise,
        checks=(*(partial(suits, check) for check in MODEL_CHECKS), *checks),
        ready=settings.check,
        progress=has_checkpoints,
        distributed=True,
        scratch=SCRATCH,
    )


@config
class TuningConfig(TrainingConfig):
    """The keys of the stages that tune a chat model."""

    template: TemplateName | None = None
    """A chat template of ours, by name (chatml); unset: the model's own."""
    reasoning: bool = True
    """Write thoughts (reasoning_content, parts of type thinking, …) as <think>…</think> before the answer; false: leave
    them out."""


def tuned(config: TuningConfig, inputs: Promises) -> Promise:
    """What is known of a stage that tunes the model of the input `model`."""
    (base,) = inputs["model"]
    template = None if config.template else kept_template(base)
    return dataclasses.replace(base, path=None, template=template)


def check_chat(config: TuningConfig, inputs: Promises) -> None:
    """UserError if there is no chat template that fits the tokenizer."""
    (base,) = inputs["model"]
    if base.template is not None:
        Chat.load(base.template, config.template)


class Rows(NamedTuple):
    """The rows of one kind, and how they are trained on."""

    noun: str
    read: Callable[[list[str], intake.Intake], Iterator[Row]]
    example: Callable[[Chat, Row], Example]
    together: int
    """Documents of an example, which stay in one row."""
    nothing: str
    """What to say if there is none."""
    long: str
    """What was done with those that are longer than a row."""


def tune(config: Any, inputs: Inputs, out: Path, rows: Rows, objective: Objective) -> None:
    """Train the model of the input `model` on the rows of the input `path`."""
    (base,) = inputs["model"]
    chat = Chat.load(base, config.template)
    splits = [Shards(path) for path in ranks.on_main(lambda: _render(config, inputs, out, rows, chat))]
    eos_id = chat.tokenizer.eos_id
    packers = [PackedGroups(s, config.seq_len, eos_id, config.seed, rows.together) for s in splits if len(s)]
    parts, rebuild = [HeldoutPart("heldout", packer) for packer in packers[1:]], partial(load_model, base)
    train_model(rebuild(), rebuild, objective, config, packers[0], parts, out, chat.tokenizer, sorted(chat.stop_ids))


def _render(config: Any, inputs: Inputs, out: Path, rows: Rows, chat: Chat) -> list[Path]:
    """The shards of both splits, made once: intake.json is written last."""
    train, heldout = out / "shards" / "train", out / "shards" / "heldout"
    if not all(mark.exists() for mark in (train / "shards.json", heldout / "shards.json", out / intake.FILE)):
        with intake.Intake(out / "quarantine.jsonl") as opened:
            found = rows.read([str(path) for path in inputs["path"]], opened)
            examples = opened.without(examples_of(partial(rows.example, chat), found))
            counts = write_examples(examples, chat.tokenizer.vocab_size, train, heldout, config.heldout, rows.nothing)
        opened.tell()
        opened.write(out)
        say(f"  {counts.train:,} {rows.noun} to train on, {counts.heldout:,} held out")
        if not counts.heldout:
            why = "heldout is 0" if not config.heldout else "there is one question"
            say(f"  {why}: nothing is measured, and the last weights are taken")
        if counts.cut:
            say(f"  {counts.cut:,} of them are longer than seq_len={config.seq_len}: {rows.long}")
        if not chat.teaches_the_end:
            say("  the chat template does not end an answer with a control token: the model will not learn to stop")
    return [train, heldout]
