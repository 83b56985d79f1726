"""A model and conversations -> a chat model."""

from functools import partial
from pathlib import Path
from typing import Annotated

from mengya import ranks
from mengya.data.conversations import read_conversations
from mengya.data.mixture import HeldoutPart
from mengya.data.packing import PackedGroups
from mengya.data.quarantine import Quarantine
from mengya.data.rendering import conversation_example, examples_of, write_examples
from mengya.data.shards import Shards
from mengya.metrics import say
from mengya.model.load import check_model, load_model
from mengya.schema import Input, Share, config
from mengya.stage import Estimate, Inputs, Sources, Stage
from mengya.stages.estimates import description_of, tokens_of_chats
from mengya.text.chat import Chat, TemplateName
from mengya.train.estimate import estimate_training
from mengya.train.objectives import language_modeling
from mengya.train.run import SCRATCH, train_model
from mengya.train.settings import TrainingConfig


@config
class Config(TrainingConfig):
    """Supervised fine-tuning."""

    model: Annotated[str, Input("model")] = "@pretrain"
    path: Annotated[str | list[str], Input("file")]
    """Conversations: messages, ShareGPT, alpaca, prompt/response, lists; mixed files are fine."""
    template: TemplateName | None = None
    """A chat template of ours, by name (chatml); unset: the model's own."""
    heldout: Share = 0.02
    """Share of the conversations to measure held-out loss on; chosen by content."""


def _write_shards(config: Config, inputs: Inputs, chat: Chat, out: Path) -> list[Path]:
    train, heldout = out / "shards" / "train", out / "shards" / "heldout"
    if not all((split / "shards.json").exists() for split in (train, heldout)):
        with Quarantine(out / "quarantine.jsonl") as quarantine:
            conversations = read_conversations([str(path) for path in inputs["path"]], quarantine)
            examples = examples_of(partial(conversation_example, chat), conversations)
            nothing = "no conversation was found; check the input and its quarantine.jsonl"
            written = write_examples(examples, chat.tokenizer.vocab_size, train, heldout, config.heldout, nothing)
        say(f"  {written.train:,} conversations to train on, {written.heldout:,} held out")
        if divided := sum(int((Shards(split).lengths > config.seq_len + 1).sum()) for split in (train, heldout)):
            say(f"  {divided:,} are longer than seq_len and divided: the later parts do not see the question")
        say(f"  {quarantine.summary()}")
    return [train, heldout]


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write a model directory and metrics.jsonl."""
    (base,) = inputs["model"]
    chat = Chat.load(base, config.template)
    splits = [Shards(path) for path in ranks.on_main(lambda: _write_shards(config, inputs, chat, out))]
    train, heldout = (PackedGroups(shards, config.seq_len, chat.tokenizer.eos_id, config.seed) for shards in splits)
    parts, stops = [HeldoutPart("heldout", heldout)], sorted(chat.stop_ids)
    objective, rebuild = language_modeling(config.balance), partial(load_model, base)
    train_model(rebuild(), rebuild, objective, config, train, parts, out, chat.tokenizer, stops)


def check(config: Config, inputs: Inputs) -> None:
    config.check()
    for base in inputs["model"]:
        check_model(base)
        Chat.load(base, config.template)


def estimate(config: Config, sources: Sources) -> Estimate:
    tokens, (base,) = tokens_of_chats(sources["path"]), sources["model"]
    return estimate_training(config, description_of(base), tokens, language_modeling(config.balance))


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
