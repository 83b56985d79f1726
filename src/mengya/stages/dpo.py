"""A chat model and preference pairs -> a model that prefers the chosen answers."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

from mengya import ranks, runtime
from mengya.data.packing import PackedGroups
from mengya.data.preferences import read_preferences
from mengya.data.quarantine import Quarantine
from mengya.data.rendering import examples_of, preference_example, write_examples
from mengya.data.shards import Shards
from mengya.metrics import say
from mengya.model.load import load_model, save_model
from mengya.schema import Input, Positive, Share, config
from mengya.stage import Estimate, Inputs, Sources, Stage
from mengya.stages.estimates import shape_of, tokens_of_chats
from mengya.text.chat import Chat, TemplateName, check_chat
from mengya.train.balance import after_step
from mengya.train.estimate import blank_model, estimate_training
from mengya.train.objectives import Objective, dpo
from mengya.train.training import SCRATCH, Trainer, TrainingConfig, prepare_model


@config
class Config(TrainingConfig):
    """Direct preference optimisation against the model it starts from."""

    model: Annotated[str, Input("model")] = "@sft"
    path: Annotated[str | list[str], Input("file")]
    """Preference pairs: prompt/chosen/rejected as strings or messages, ranked answers."""
    template: TemplateName | None = None
    """A chat template of ours, by name (chatml); unset: the model's own."""
    heldout: Share = 0.05
    """Share of the pairs to measure held-out loss on; chosen by content."""
    beta: Positive = 0.1
    """How strongly the policy is held to the reference."""


def _write_shards(config: Config, inputs: Inputs, chat: Chat, out: Path) -> list[Path]:
    train, heldout = out / "shards" / "train", out / "shards" / "heldout"
    if not all((split / "shards.json").exists() for split in (train, heldout)):
        with Quarantine(out / "quarantine.jsonl") as quarantine:
            pairs = read_preferences([str(path) for path in inputs["path"]], quarantine)
            examples = examples_of(partial(preference_example, chat, seq_len=config.seq_len), pairs)
            nothing = (
                f"no preference pair fits into seq_len={config.seq_len}; raise dpo.seq_len or check quarantine.jsonl"
            )
            written = write_examples(examples, chat.tokenizer.vocab_size, train, heldout, config.heldout, nothing)
        say(f"  {written.train:,} pairs to train on, {written.heldout:,} held out, {written.too_long:,} too long")
        say(f"  {quarantine.summary()}")
    return [train, heldout]


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write a model directory and metrics.jsonl."""
    (base,) = inputs["model"]
    chat = Chat.load(base, config.template)
    splits = [Shards(path) for path in ranks.on_main(lambda: _write_shards(config, inputs, chat, out))]
    model, _ = prepare_model(load_model(base), config)
    reference, _ = prepare_model(load_model(base).requires_grad_(False), config)
    reference.to(runtime.pick_device())  # whole on every rank
    train, heldout = (PackedGroups(shards, config.seq_len, chat.tokenizer.eos_id, config.seed, 2) for shards in splits)
    objective, update = dpo(config.beta, reference, config.balance), after_step(model, config.balance)
    best = Trainer(model, objective, config, train, out, update).run(heldout, "dpo")
    if best is not None:
        save_model(best, out, None, sorted(chat.stop_ids), chat.tokenizer.eos_id)
        chat.tokenizer.save(out)


_PROMPT_TWICE = 1.4
"""The prompt of a pair stands before both of its answers."""


def check(config: Config, inputs: Inputs) -> None:
    config.check()
    for base in inputs["model"]:
        check_chat(base, config.template)


def estimate(config: Config, sources: Sources) -> Estimate:
    shape = shape_of(sources["model"][0])

    def make_objective(_model) -> Objective:
        reference, _ = prepare_model(
            blank_model(shape).requires_grad_(False), dataclasses.replace(config, compile=False)
        )
        return dpo(config.beta, reference, config.balance)

    tokens = _PROMPT_TWICE * tokens_of_chats(sources["path"])
    return estimate_training(config, shape, tokens, make_objective, per_count=2)


STAGE = Stage(
    config=Config,
    run=run,
    makes=("model", "tokenizer"),
    estimate=estimate,
    check=check,
    resumable=True,
    distributed=True,
    scratch=SCRATCH,
)
