"""A Hugging Face directory from an unfinished training, from one checkpoint, or from a model in another type."""

import json
import shutil
from pathlib import Path

import torch

from mengya import durable
from mengya.errors import UserError
from mengya.hub import located
from mengya.manifest import UNFINISHED
from mengya.metrics import format_count, say
from mengya.model.adapters import Lora, is_adapter
from mengya.model.language_model import LanguageModel
from mengya.model.load import assemble, load_merged, load_model
from mengya.text.chat import Chat, ends_of
from mengya.text.template import own_template
from mengya.text.tokenizer import Tokenizer, read_files, write_files
from mengya.train.checkpoint import read_weights
from mengya.train.checkpoint_storage import steps_in


def export(source: Path, out: Path, dtype: torch.dtype | None, trust_remote_code: bool = False) -> None:
    """Fill `out`, which must not exist, and does not exist after an error. `dtype` None keeps that of the weights.

    `source`: a stage's directory while or before it is finished (its newest whole checkpoint is taken), a checkpoint,
    a model directory, or that of an adapter, which is merged into its model. UserError if it is none of these.
    """
    if out.exists():
        raise UserError(f"{out} is there already; delete it or choose another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if (source / "checkpoint.json").is_file():
            name, model = _from_checkpoint(source, partial, dtype, trust_remote_code)
        elif (source / "checkpoints").is_dir():
            name, model = _from_run(source, partial, dtype, trust_remote_code)
        elif is_adapter(source):
            name, model = _from_adapter(source, partial, dtype, trust_remote_code)
        elif (source / "config.json").is_file():
            name, model = _from_model(source, partial, dtype, trust_remote_code)
        else:
            raise UserError(_refusal(source))
        durable.flush_tree(partial)
        durable.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"✓ {out}: {name}, {format_count(model.all_parameters())} parameters")


def _refusal(source: Path) -> str:
    unfinished = [*source.glob("*.partial/checkpoints"), *source.parent.glob(f"{source.name}.partial/checkpoints")]
    if unfinished:
        return f"{source} is not a model; the training in {unfinished[-1].parent} is unfinished: give that directory"
    kinds = "a stage's directory with checkpoints, one of its checkpoints, or a model directory"
    return f"{source} is not there; give {kinds}" if not source.exists() else f"{source} is none of these: {kinds}"


def _from_run(source: Path, out: Path, dtype: torch.dtype | None, trust: bool) -> tuple[str, LanguageModel]:
    for path in reversed(steps_in(source / "checkpoints")):
        try:
            return _from_checkpoint(path, out, dtype, trust)
        except UserError as error:  # the run itself will delete it
            say(f"passing over a damaged checkpoint: {error}")
    raise UserError(f"{source} has no whole checkpoint yet; let it train on")


def _from_checkpoint(source: Path, out: Path, dtype: torch.dtype | None, trust: bool) -> tuple[str, LanguageModel]:
    run = source.parent.parent
    note = _note(run)
    inputs = [
        (entry["field"], run / entry["path"] if entry["artifact"] else located(entry["path"]))
        for entry in note.get("inputs", [])
    ]
    base = dict(inputs).get("model", dict(inputs).get("init"))  # it has the weights that were frozen
    lora = note.get("config", {}).get("lora")
    model = assemble(source, read_weights(source), base, Lora(**lora) if lora else None, trust)
    # The largest that fits, because a tokenizer may have grown from one input to the next.
    tokenizers = [Tokenizer.load(path) for _, path in inputs if (path / "tokenizer.json").is_file()]
    fitting = [tokenizer for tokenizer in tokenizers if tokenizer.vocab_size <= model.vocab_size]
    if not fitting:
        say(f"{run} does not say which tokenizer it uses: exporting without")
        model.save(out, dtype)
        return source.name, model
    tokenizer = max(fitting, key=lambda tokenizer: tokenizer.vocab_size)
    stops = [tokenizer.eos_id]
    template = note.get("config", {}).get("template")
    if template or own_template(tokenizer.files):
        chat = Chat(tokenizer, template)
        tokenizer, stops = chat.tokenizer, sorted(chat.stop_ids)
    model.save(out, dtype, stops, tokenizer.eos_id)
    tokenizer.save(out)
    return source.name, model


def _note(run: Path) -> dict:
    """What a stage that is not finished wrote about itself; {} beside a checkpoint that lies elsewhere now."""
    try:
        return json.loads((run / UNFINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _from_adapter(source: Path, out: Path, dtype: torch.dtype | None, trust: bool) -> tuple[str, LanguageModel]:
    tokenizer, model = Tokenizer.load(source), load_merged([source], trust_remote_code=trust)
    model.save(out, dtype, ends_of(tokenizer), tokenizer.eos_id)
    tokenizer.save(out)
    return source.name, model


def _from_model(source: Path, out: Path, dtype: torch.dtype | None, trust: bool) -> tuple[str, LanguageModel]:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"), torch.float32)
    model = load_model(source, dtype or stored, trust_remote_code=trust)
    model.save(out, dtype or stored, config.get("eos_token_id"), config.get("pad_token_id"))
    write_files(read_files(source), out)
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", out / "generation_config.json")
    return source.name, model
