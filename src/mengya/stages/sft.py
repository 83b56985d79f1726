"""A model and conversations -> a chat model."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mengya import runtime
from mengya.data.conversations import parse_conversation, read_conversations
from mengya.data.rendering import conversation_example
from mengya.model.load import load_model
from mengya.schema import HeldoutShare, Input, Positive, config
from mengya.stage import Estimate, Inputs, Promise, Promises, Sources
from mengya.stages.estimates import tokens_of_chats
from mengya.stages.known import check_rows
from mengya.stages.training import (
    Rows,
    TuningConfig,
    check_chat,
    check_replay,
    check_same_tokenizer,
    training_stage,
    tune,
    tuned,
)
from mengya.train.estimate import estimate_training
from mengya.train.neftune import add_noise
from mengya.train.objectives import Objective, distillation, language_modeling
from mengya.train.settings import prepare_model

_NOTHING = "no conversation was found"


@config
class Distillation:
    """How a teacher's probabilities are learnt."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the loss that is the divergence from the teacher; the rest is that of the conversations."""
    temperature: Positive = 1.0
    """Both distributions are flattened by it; the divergence is multiplied by its square."""
    reverse: bool = False
    """Measure from the student's side (mode-seeking) instead of the teacher's."""


@config
class Config(TuningConfig):
    """Supervised fine-tuning."""

    model: Annotated[str, Input("model")] = "@pretrain"
    path: Annotated[str | list[str], Input("file")]
    """Conversations: messages, ShareGPT, alpaca, prompt/response, lists, sentences with entities; mixed files too."""
    heldout: HeldoutShare = 0.02
    """Share of the conversations to measure held-out loss on, chosen by their first question; 0: none."""
    supervise: Literal["all", "last"] = "all"
    """Which turns of the assistant are learnt: all of a conversation, or the last alone."""
    neftune_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Noise that is added to the embeddings while training, e.g. 5 (NEFTune; Jain et al. 2023, arXiv:2310.05914)."""
    teacher: Annotated[str, Input("model")] | None = None
    """A larger model with the same tokenizer, whose probabilities are learnt, too."""
    distillation: Distillation = dataclasses.field(default_factory=Distillation)


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write a model directory and metrics.jsonl."""
    nothing = f"{_NOTHING}; check the input and its quarantine.jsonl"
    read = partial(read_conversations, reasoning=config.reasoning)
    example = partial(conversation_example, seq_len=config.seq_len, supervise=config.supervise)
    long = "cut at turns, and each answer keeps the end of its prompt"
    rows = Rows("conversations", read, example, 1, nothing, long)
    tune(config, inputs, out, rows, _objective(config, inputs), partial(add_noise, alpha=config.neftune_alpha))


def _objective(config: Config, inputs: Inputs) -> Objective:
    if config.teacher is None:
        return language_modeling(config.balance)
    (directory,) = inputs["teacher"]
    check_same_tokenizer([directory, *inputs["model"]])
    teacher = prepare_model(load_model(directory, **config.loading).requires_grad_(False), config)
    teacher.to(runtime.pick_device())  # whole on every rank
    how = config.distillation
    return distillation(teacher, how.share, how.temperature, how.reverse, config.balance)


def estimate(config: Config, sources: Sources, promise: Promise) -> Estimate:
    tokens = tokens_of_chats(sources["path"]) / (1 - config.replay_share)
    return estimate_training(config, promise, tokens, lambda: language_modeling(config.balance))


def _check_path(config: Config, inputs: Promises) -> None:
    check_rows(inputs["path"], ("conversation", "question"), parse_conversation, _NOTHING)


def _check_teacher(config: Config, inputs: Promises) -> None:
    for teacher in inputs.get("teacher", []):
        (base,) = inputs["model"]
        if base.tokenizer is not None and teacher.tokenizer is not None:
            check_same_tokenizer([base.tokenizer, teacher.tokenizer])


STAGE = training_stage(Config, run, estimate, tuned, check_chat, check_replay, _check_path, _check_teacher)
