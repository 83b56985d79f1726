"""A model and conversations -> a chat model."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from mengya.data.conversations import parse_conversation, read_conversations
from mengya.data.rendering import conversation_example
from mengya.schema import HeldoutShare, Input, config
from mengya.stage import Estimate, Inputs, Promise, Promises, Sources
from mengya.stages.estimates import tokens_of_chats
from mengya.stages.known import check_rows
from mengya.stages.training import Rows, TuningConfig, check_chat, check_replay, training_stage, tune, tuned
from mengya.train.estimate import estimate_training
from mengya.train.objectives import language_modeling

_NOTHING = "no conversation was found"


@config
class Config(TuningConfig):
    """Supervised fine-tuning."""

    model: Annotated[str, Input("model")] = "@pretrain"
    path: Annotated[str | list[str], Input("file")]
    """Conversations: messages, ShareGPT, alpaca, prompt/response, lists; mixed files are fine."""
    heldout: HeldoutShare = 0.02
    """Share of the conversations to measure held-out loss on, chosen by their first question; 0: none."""
    supervise: Literal["all", "last"] = "all"
    """Which turns of the assistant are learnt: all of a conversation, or the last alone."""


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write a model directory and metrics.jsonl."""
    nothing = f"{_NOTHING}; check the input and its quarantine.jsonl"
    read = partial(read_conversations, reasoning=config.reasoning)
    example = partial(conversation_example, seq_len=config.seq_len, supervise=config.supervise)
    long = "cut at turns, and each answer keeps the end of its prompt"
    rows = Rows("conversations", read, example, 1, nothing, long)
    tune(config, inputs, out, rows, language_modeling(config.balance))


def estimate(config: Config, sources: Sources, promise: Promise) -> Estimate:
    tokens = tokens_of_chats(sources["path"]) / (1 - config.replay_share)
    return estimate_training(config, promise, tokens, language_modeling(config.balance))


def _check_path(config: Config, inputs: Promises) -> None:
    check_rows(inputs["path"], ("conversation", "question"), parse_conversation, _NOTHING)


STAGE = training_stage(Config, run, estimate, tuned, check_chat, check_replay, _check_path)
