"""A chat model and preference pairs -> a model that prefers the chosen answers."""

from functools import partial
from pathlib import Path
from typing import Annotated

from mengya import runtime
from mengya.data.preferences import parse_preference, read_preferences
from mengya.data.rendering import preference_example
from mengya.model.load import load_model
from mengya.schema import HeldoutShare, Input, Positive, config
from mengya.stage import Estimate, Inputs, Promise, Promises, Sources
from mengya.stages.estimates import tokens_of_chats
from mengya.stages.known import check_rows
from mengya.stages.training import Rows, TuningConfig, check_chat, check_replay, training_stage, tune, tuned
from mengya.train.estimate import estimate_training, random_model
from mengya.train.objectives import Objective, dpo
from mengya.train.settings import prepare_model


@config
class Config(TuningConfig):
    """Direct preference optimisation against the model it starts from."""

    model: Annotated[str, Input("model")] = "@sft"
    path: Annotated[str | list[str], Input("file")]
    """Preference pairs: prompt/chosen/rejected as strings or messages, ranked answers."""
    heldout: HeldoutShare = 0.05
    """Share of the pairs to measure held-out loss on; chosen by their first question; 0: none."""
    beta: Positive = 0.1
    """How strongly the policy is held to the reference."""


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write a model directory and metrics.jsonl."""
    reference = prepare_model(load_model(inputs["model"][0], **config.loading).requires_grad_(False), config)
    reference.to(runtime.pick_device())  # whole on every rank
    nothing = f"no preference pair fits into seq_len={config.seq_len}; raise dpo.seq_len or check quarantine.jsonl"
    read = partial(read_preferences, reasoning=config.reasoning)
    long = "their prompts lose their oldest turns, and both answers of a pair keep the same end of the prompt"
    rows = Rows("pairs", read, partial(preference_example, seq_len=config.seq_len), 2, nothing, long)
    tune(config, inputs, out, rows, dpo(config.beta, reference, config.balance))


_PROMPT_TWICE = 1.4
"""The prompt of a pair stands before both of its answers."""


def estimate(config: Config, sources: Sources, promise: Promise) -> Estimate:
    tokens = _PROMPT_TWICE * tokens_of_chats(sources["path"]) / (1 - config.replay_share)

    def objective() -> Objective:
        reference = prepare_model(random_model(promise, config.loading).requires_grad_(False), config)
        return dpo(config.beta, reference, config.balance)

    return estimate_training(config, promise, tokens, objective, per_count=2, frozen=1)


def _check_path(config: Config, inputs: Promises) -> None:
    check_rows(inputs["path"], ("preference",), parse_preference, "no preference pair was found")


STAGE = training_stage(Config, run, estimate, tuned, check_chat, check_replay, _check_path)
