"""What can be exported: an unfinished training, one checkpoint, an adapter merged into its model, a model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from mengya.errors import UserError
from mengya.hub import located
from mengya.manifest import UNFINISHED
from mengya.metrics import say
from mengya.model.adapters import Lora, is_adapter
from mengya.model.language_model import GENERATION, LanguageModel
from mengya.model.load import assemble, load_merged, load_model, such_as_below
from mengya.text.chat import Chat, ends_of
from mengya.text.template import own_template
from mengya.text.tokenizer import Tokenizer, read_files, write_files
from mengya.train.checkpoint import read_weights
from mengya.train.checkpoint_storage import steps_in


class Found(NamedTuple):
    """A model and what belongs to it."""

    name: str
    model: LanguageModel
    dtype: torch.dtype | None
    """Of the weights where they lie; None: that of the model."""
    files: Mapping[str, bytes]
    """Of its tokenizer and chat template; {} if it has none."""
    eos: int | list[int] | None
    pad: int | None
    generation: bytes | None = None
    """The content of its generation_config.json, if it has one."""

    def save(self, out: Path, dtype: torch.dtype | None) -> None:
        """Write a Hugging Face directory; `dtype` None keeps that of the weights."""
        self.model.save(out, dtype or self.dtype, self.eos, self.pad)
        write_files(self.files, out)
        if self.generation is not None:
            (out / GENERATION).write_bytes(self.generation)


def find(source: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> Found:
    """The model that `source` means, read in `dtype` (None: as it lies there). UserError if it is none of these."""
    if (source / "checkpoint.json").is_file():
        return _from_checkpoint(source, trust_remote_code)
    if (source / "checkpoints").is_dir():
        return _from_run(source, trust_remote_code)
    if is_adapter(source):
        tokenizer, model = Tokenizer.load(source), load_merged([source], trust_remote_code=trust_remote_code)
        return Found(source.name, model, None, tokenizer.files, ends_of(tokenizer), tokenizer.eos_id)
    if (source / "config.json").is_file():
        return _from_model(source, dtype, trust_remote_code)
    raise UserError(_refusal(source))


def _refusal(source: Path) -> str:
    unfinished = [*source.glob("*.partial/checkpoints"), *source.parent.glob(f"{source.name}.partial/checkpoints")]
    if unfinished:
        return f"{source} is not a model; the training in {unfinished[-1].parent} is unfinished: give that directory"
    kinds = "a stage's directory with checkpoints, one of its checkpoints, or a model directory"
    if not source.exists():
        return f"{source} is not there; give {kinds}"
    return f"{source} is none of these: {kinds}{such_as_below(source)}"


def _from_run(source: Path, trust: bool) -> Found:
    for path in reversed(steps_in(source / "checkpoints")):
        try:
            return _from_checkpoint(path, trust)
        except UserError as error:  # the run itself will delete it
            say(f"passing over a damaged checkpoint: {error}")
    raise UserError(f"{source} has no whole checkpoint yet; let it train on")


def _from_checkpoint(source: Path, trust: bool) -> Found:
    run = source.parent.parent
    note = read_note(run)
    inputs = inputs_of(run, note)
    base = dict(inputs).get("model", dict(inputs).get("init"))  # it has the weights that were frozen
    lora = note.get("config", {}).get("lora")
    model = assemble(source, read_weights(source), base, Lora(**lora) if lora else None, trust)
    # The largest that fits, because a tokenizer may have grown from one input to the next.
    tokenizers = [Tokenizer.load(path) for _, path in inputs if (path / "tokenizer.json").is_file()]
    fitting = [tokenizer for tokenizer in tokenizers if tokenizer.vocab_size <= model.vocab_size]
    if not fitting:
        say(f"{run} does not say which tokenizer it uses: exporting without")
        return Found(source.name, model, None, {}, None, None)
    tokenizer = max(fitting, key=lambda tokenizer: tokenizer.vocab_size)
    stops = [tokenizer.eos_id]
    template = note.get("config", {}).get("template")
    if template or own_template(tokenizer.files):
        chat = Chat(tokenizer, template)
        tokenizer, stops = chat.tokenizer, sorted(chat.stop_ids)
    return Found(source.name, model, None, tokenizer.files, stops, tokenizer.eos_id)


def read_note(run: Path) -> dict:
    """What a stage that is not finished wrote about itself; {} beside a checkpoint that lies elsewhere now."""
    try:
        return json.loads((run / UNFINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def inputs_of(run: Path, note: Mapping) -> list[tuple[str, Path]]:
    """(field, directory) of what the note of a run says that it reads."""
    return [
        (entry["field"], run / entry["path"] if entry["artifact"] else located(entry["path"]))
        for entry in note.get("inputs", [])
    ]


def _from_model(source: Path, dtype: torch.dtype | None, trust: bool) -> Found:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"), torch.float32)
    model = load_model(source, dtype or stored, trust_remote_code=trust)
    generation = (source / GENERATION).read_bytes() if (source / GENERATION).is_file() else None
    eos, pad = config.get("eos_token_id"), config.get("pad_token_id")
    return Found(source.name, model, dtype or stored, read_files(source), eos, pad, generation)
