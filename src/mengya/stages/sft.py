"""A model and conversations -> a chat model."""

from functools import partial
from pathlib import Path

from mengya import ranks
from mengya.data.conversations import read_conversations
from mengya.data.packing import PackedGroups
from mengya.data.quarantine import Quarantine
from mengya.data.rendering import conversation_example, examples_of, write_examples
from mengya.data.shards import Shards
from mengya.metrics import say
from mengya.model.load import load_model, save_model
from mengya.schema import InputPath, InputPaths, Share, config
from mengya.text.tokenizer import Tokenizer
from mengya.train.balance import after_step
from mengya.train.objectives import language_modeling
from mengya.train.training import SCRATCH, Trainer, TrainingConfig, prepare_model

RESUMABLE = DISTRIBUTED = True
__all__ = ["DISTRIBUTED", "RESUMABLE", "SCRATCH", "Config", "run"]


@config
class Config(TrainingConfig):
    """Supervised fine-tuning of all weights."""

    model: InputPath = "@pretrain"
    path: InputPaths
    """Conversations: messages, ShareGPT, alpaca, prompt/response, lists; mixed files are fine."""
    heldout: Share = 0.02
    """Share of the conversations to measure held-out loss on; chosen by content."""
    freeze_embeddings: bool = False
    """Keep the embedding (and a tied output projection) as it is."""


def _write_shards(config: Config, inputs: dict[str, list[Path]], tokenizer: Tokenizer, out: Path) -> list[Path]:
    train, heldout = out / "shards" / "train", out / "shards" / "heldout"
    if not all((split / "shards.json").exists() for split in (train, heldout)):
        with Quarantine(out / "quarantine.jsonl") as quarantine:
            conversations = read_conversations([str(path) for path in inputs["path"]], quarantine)
            examples = examples_of(partial(conversation_example, tokenizer), conversations)
            nothing = "no conversation was found; check the input and its quarantine.jsonl"
            written = write_examples(examples, tokenizer.vocab_size, train, heldout, config.heldout, nothing)
        say(f"  {written.train:,} conversations to train on, {written.heldout:,} held out")
        if divided := sum(int((Shards(split).lengths > config.seq_len + 1).sum()) for split in (train, heldout)):
            say(f"  {divided:,} are longer than seq_len and divided: the later parts do not see the question")
        say(f"  {quarantine.summary()}")
    return [train, heldout]


def run(config: Config, inputs: dict[str, list[Path]], out: Path) -> None:
    """Write a model directory and metrics.jsonl."""
    (base,) = inputs["model"]
    tokenizer = Tokenizer.load(base)
    splits = [Shards(path) for path in ranks.on_main(lambda: _write_shards(config, inputs, tokenizer, out))]
    model, compiled = prepare_model(load_model(base), config)
    model.model.embed_tokens.weight.requires_grad_(not config.freeze_embeddings)
    train, heldout = (PackedGroups(shards, config.seq_len, tokenizer.eos_id, config.seed) for shards in splits)
    objective, update = language_modeling(compiled, config.balance), after_step(model, config.balance)
    best = Trainer(model, objective, config, train, out, update).run(heldout, "sft")
    if best is not None:
        save_model(best, out, None, sorted(tokenizer.stop_ids), tokenizer.eos_id)
        tokenizer.save(out)
