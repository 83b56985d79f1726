"""A model for others: a Hugging Face directory or a GGUF file for llama.cpp and Ollama, with a model card, checked."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from mengya import durable, hub
from mengya.errors import UserError
from mengya.export import card, gate, gguf_file
from mengya.export.sources import Found, find
from mengya.metrics import format_count, say
from mengya.model.gguf import Quantization
from mengya.model.load import load_model
from mengya.text.chat import ends_of
from mengya.text.tokenizer import Tokenizer


def export(
    source: Path,
    out: Path,
    dtype: torch.dtype | None,
    trust_remote_code: bool = False,
    gguf: bool = False,
    quantize: Quantization | None = None,
    pythons: Sequence[Path] = (),
    license: str | None = None,
    push: str | None = None,
    public: bool = False,
) -> None:
    """Fill `out`, which must not exist, and does not exist after an error. `dtype` None keeps that of the weights.

    `source`: a stage's directory while or before it is finished (its newest whole checkpoint is taken), a checkpoint,
    a model directory, or that of an adapter, which is merged into its model. UserError if it is none of these.
    `gguf`: write a GGUF file of the type `quantize` (None: that of the weights) and what Ollama needs, instead.
    What was written is compared with the model, by the engines that are installed here or for one of `pythons`.
    `license`: what the model card says. `push`: the repository of a hub to upload to, private unless `public`.
    """
    if push is not None:
        hub.check_target(push)
    found, told = _export(source, out, dtype, trust_remote_code, gguf, quantize, pythons, license)
    say(f"✓ {out}: {found.name}, {format_count(found.model.all_parameters())} parameters")
    for line in told:
        say(f"  {line}")
    if push is not None:
        say(f"✓ {hub.push(out, push, public, license)}")


def _export(
    source: Path,
    out: Path,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
    gguf: bool,
    quantize: Quantization | None,
    pythons: Sequence[Path],
    license: str | None,
) -> tuple[Found, list[str]]:
    """As `export`, without a word; what was found, and what was compared."""
    if out.exists():
        raise UserError(f"{out} is there already; delete it or choose another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        found = find(source, dtype, trust_remote_code)
        file = None
        if gguf:
            written = gguf_file.write(found, partial, out.name, quantize)
            file, told = written.path, _check_gguf(found, written, pythons)
        else:
            found.save(partial, dtype)
            told = _check_directory(found, partial, dtype, trust_remote_code, pythons)
        card.write(found, source, partial, out.name, file, license)
        durable.flush_tree(partial)
        durable.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found, told


def _check_directory(
    found: Found, partial: Path, dtype: torch.dtype | None, trust_remote_code: bool, pythons: Sequence[Path]
) -> list[str]:
    """What was compared, and what was not. UserError if another engine computes another model."""
    if found.model.all_parameters() > gate.LARGEST:
        return [f"not checked: more than {format_count(gate.LARGEST)} parameters"]
    tokenizer = Tokenizer(found.files, found.name) if "tokenizer.json" in found.files else None
    model = load_model(partial, trust_remote_code=trust_remote_code)
    gate.same_weights(found.model, model, dtype or found.dtype)
    told, reason = gate.with_transformers(partial, model, tokenizer, trust_remote_code)
    out = [f"checked by {told}" if told else f"not checked by transformers: {reason}"]
    if (python := gate.python_of("vllm", pythons)) is None or tokenizer is None:
        return [*out, "not checked by vLLM: not installed" if python is None else "not checked by vLLM: no tokenizer"]
    figures = gate.compare("vllm", partial, model, tokenizer, ends_of(tokenizer), python, limit=1e-3)
    return [*out, f"checked by {figures.told()}"]


def _check_gguf(found: Found, written: gguf_file.Written, pythons: Sequence[Path]) -> list[str]:
    """What was compared, and what was not. UserError if llama.cpp computes another model, or reads other tokens."""
    out = [f"checked: {written.path.name} read back, all tensors and the tokens of 2000 lines"]
    if written.wanted != "f32":
        sequences = gate.sequences_of(written.tokenizer, written.model)
        moved, _ = gate.difference(gate.ours(found.model, sequences), gate.ours(written.model, sequences))
        out.append(f"{written.wanted} moves log-probabilities by {moved:.1e} on average")
    if (python := gate.python_of("llama_cpp", pythons)) is None:
        return [*out, "not checked by llama.cpp: llama_cpp is not installed (--check-with names a Python that has it)"]
    texts = gguf_file.proof_texts(written.tokenizer)
    limit = gate.LIMITS[written.wanted]
    figures = gate.compare(
        "llama_cpp", written.path, written.model, written.tokenizer, written.stops, python, limit, texts
    )
    return [*out, f"checked by {figures.told()}; tokens of {len(texts)} texts are the same"]
