"""A chat model and preference pairs -> a model that prefers the chosen answers."""

from functools import partial
from pathlib import Path
from typing import Annotated

from mengya import ranks, runtime
from mengya.data.mixture import HeldoutPart
from mengya.data.packing import PackedGroups
from mengya.data.preferences import read_preferences
from mengya.data.quarantine import Quarantine
from mengya.data.rendering import examples_of, preference_example, write_examples
from mengya.data.shards import Shards
from mengya.metrics import say
from mengya.model.load import check_model, load_model
from mengya.schema import Input, Positive, Share, config
from mengya.stage import Estimate, Inputs, Sources, Stage
from mengya.stages.estimates import description_of, tokens_of_chats
from mengya.text.chat import Chat, TemplateName
from mengya.train.estimate import estimate_training, random_model
from mengya.train.objectives import dpo
from mengya.train.run import SCRATCH, train_model
from mengya.train.settings import TrainingConfig, prepare_model


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
    reference = prepare_model(load_model(base).requires_grad_(False), config)
    reference.to(runtime.pick_device())  # whole on every rank
    train, heldout = (PackedGroups(shards, config.seq_len, chat.tokenizer.eos_id, config.seed, 2) for shards in splits)
    parts, stops = [HeldoutPart("heldout", heldout)], sorted(chat.stop_ids)
    objective, rebuild = dpo(config.beta, reference, config.balance), partial(load_model, base)
    train_model(rebuild(), rebuild, objective, config, train, parts, out, chat.tokenizer, stops)


def check(config: Config, inputs: Inputs) -> None:
    config.check()
    for base in inputs["model"]:
        check_model(base)
        Chat.load(base, config.template)


_PROMPT_TWICE = 1.4
"""The prompt of a pair stands before both of its answers."""


def estimate(config: Config, sources: Sources) -> Estimate:
    tokens, base = _PROMPT_TWICE * tokens_of_chats(sources["path"]), description_of(sources["model"][0])
    reference = prepare_model(random_model(base).requires_grad_(False), config)
    return estimate_training(config, base, tokens, dpo(config.beta, reference, config.balance), per_count=2)


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
