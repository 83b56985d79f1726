"""What the training stages share: how they run, and tuning on rows that a chat template renders."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field

from mengya import ranks
from mengya.data import intake
from mengya.data.mixture import HeldoutPart, TextAmongPairs, with_replay
from mengya.data.packing import PackedGroups, PackedText, Packer
from mengya.data.readers import Row
from mengya.data.rendering import Example, examples_of, write_examples
from mengya.data.shards import Shards
from mengya.errors import UserError
from mengya.metrics import say
from mengya.model.language_model import LanguageModel
from mengya.model.load import load_model, outline
from mengya.schema import Input, config
from mengya.stage import Estimate, Inputs, Promise, Promises, Sources, Stage
from mengya.stages.known import kept_template
from mengya.text.chat import Chat
from mengya.text.template import TemplateName
from mengya.text.tokenizer import Tokenizer, read_backend
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
            check(config, outline(description | unknown, **config.loading))

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
    """A chat template of ours, by name (chatml, baichuan2, chatglm2, chatglm3, glm4, tiny-llama2); unset: the model's
    own."""
    reasoning: bool = True
    """Write thoughts (reasoning_content, parts of type thinking, …) as <think>…</think> before the answer; false: leave
    them out."""
    replay: Annotated[str, Input("shards")] | None = None
    """Token shards of plain text, e.g. "@tokenize", of which some rows are trained on in between, so that the model
    does not forget what it has read. Made with the model's tokenizer."""
    replay_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the rows that comes from replay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.replay is None) != (self.replay_share == 0):
            raise ValueError(
                f"replay={self.replay!r} and replay_share={self.replay_share} do not fit; set both, or neither"
            )


def check_same_tokenizer(directories: list[Path]) -> None:
    """UserError if these directories have several tokenizers."""
    contents = {directory: read_backend(directory).to_str() for directory in directories}
    for other, content in contents.items():
        if content != contents[first := directories[0]]:
            raise UserError(f"{first} and {other} were made with different tokenizers; tokenize both with the same one")


def text_of(shards: Path, split: str, config: TrainingConfig, tokenizer: Tokenizer) -> tuple[Packer, float]:
    """The rows of a split, and the bytes of text that a predicted token of it stands for."""
    found = Shards(shards / split)
    if not len(found):
        raise UserError(f"{shards / split} does not hold a document; give more text or a smaller held-out share")
    counts = found.meta  # one separator is predicted for each document
    bytes_per_token = counts["bytes"] / (counts["tokens"] + counts["documents"])
    return PackedText(found, config.seq_len, tokenizer.eos_id, config.seed), bytes_per_token


def tuned(config: TuningConfig, inputs: Promises) -> Promise:
    """What is known of a stage that tunes the model of the input `model`."""
    (base,) = inputs["model"]
    template = None if config.template else kept_template(base)
    return dataclasses.replace(base, path=None, template=template)


def check_replay(config: TuningConfig, inputs: Promises) -> None:
    """UserError if the replayed text was not made with the tokenizer of the model."""
    for shards in inputs.get("replay", []):
        (base,) = inputs["model"]
        if base.tokenizer is not None and shards.tokenizer is not None:
            check_same_tokenizer([base.tokenizer, shards.tokenizer])
        elif base.vocab_size and shards.vocab_size and base.vocab_size != shards.vocab_size:
            raise UserError(
                f"replay={config.replay!r} has {shards.vocab_size} entries and the model {base.vocab_size}: they were "
                "made with different tokenizers; tokenize the text with the model's"
            )


def check_chat(config: TuningConfig, inputs: Promises) -> None:
    """UserError if there is no chat template that fits the tokenizer and tells what is taught."""
    (base,) = inputs["model"]
    if base.template is not None:
        Chat.load(base.template, config.template).check_teaches()


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


def tune(
    config: Any,
    inputs: Inputs,
    out: Path,
    rows: Rows,
    objective: Objective,
    change: Callable[[LanguageModel], None] = lambda model: None,
) -> None:
    """Train the model of the input `model`, after a `change` of it, on the rows of the input `path`."""
    (base,) = inputs["model"]
    chat = Chat.load(base, config.template)
    splits = [Shards(path) for path in ranks.on_main(lambda: _render(config, inputs, out, rows, chat))]
    eos_id = chat.tokenizer.eos_id
    packers = [PackedGroups(s, config.seq_len, eos_id, config.seed, rows.together) for s in splits if len(s)]
    train, parts = _with_replay(config, inputs, packers[0], packers[1:], rows.noun, chat.tokenizer)

    def rebuild() -> LanguageModel:
        torch.manual_seed(config.seed)
        return load_model(base, **config.loading, lora=config.lora, as_trained=True)

    model = rebuild()
    say(f"  going on from {base.name}: {model.title}")
    change(model)
    train_model(model, rebuild, objective, config, train, parts, out, chat.tokenizer, sorted(chat.stop_ids))


def _with_replay(
    config: Any, inputs: Inputs, train: Packer, heldout: list[PackedGroups], noun: str, tokenizer: Tokenizer
) -> tuple[Packer, list[HeldoutPart]]:
    """The rows to train on, and what is held out of each source: that of the text only beside that of the rows."""
    parts = [HeldoutPart(noun, packer, 1 - config.replay_share) for packer in heldout]
    if config.replay is None:
        return train, parts
    (shards,) = inputs["replay"]
    (text, _), (heldout_text, size) = (text_of(shards, split, config, tokenizer) for split in ("train", "heldout"))
    if train.per_count:
        text, heldout_text = (TextAmongPairs(packer, train.per_count) for packer in (text, heldout_text))
    if parts:
        parts.append(HeldoutPart("text", heldout_text, config.replay_share, size))
    return with_replay(train, text, config.replay_share, config.seed), parts


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
            say(
                "  the chat template does not end an answer with a control token: the model will not learn to stop; "
                'a template of ours does, e.g. sft.template = "glm4" for GLM-4'
            )
    return [train, heldout]
