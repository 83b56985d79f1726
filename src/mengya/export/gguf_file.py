"""A GGUF file with its Modelfile, written from a model that was found, and read back."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mengya.errors import UserError
from mengya.export.sources import Found
from mengya.metrics import say
from mengya.model.gguf import (
    BLOCK,
    Quantization,
    architecture,
    from_gguf,
    hyperparameters,
    native,
    read,
    to_gguf,
)
from mengya.model.gguf import write as write_file
from mengya.model.language_model import SAMPLING
from mengya.model.native.transformer import CausalLM
from mengya.text.chat import Chat, ends_of
from mengya.text.gguf_reader import Reader
from mengya.text.gguf_vocabulary import proof_texts, vocabulary
from mengya.text.modelfile import modelfile
from mengya.text.template import own_template
from mengya.text.tokenizer import Tokenizer

_TYPES: dict[torch.dtype, Quantization] = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_MISREAD = ("phi-3", "phi3", "modern-bert")
"""Names of models for which llama.cpp reads tokens in another way."""
_ROUNDING = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 0.6 / 127, "q5_0": 1.1 / 16, "q4_0": 1.1 / 8}
"""How far a number may be from the one that was written, as a part of the largest in its row."""


class Written(NamedTuple):
    """A file that was read back and found right."""

    path: Path
    wanted: Quantization
    values: dict[str, Any]
    model: CausalLM
    """What the file holds, in float32."""
    tokenizer: Tokenizer
    stops: list[int]


def write(found: Found, out: Path, name: str, quantize: Quantization | None) -> Written:
    """Fill the directory `out` with `<name>-<type>.gguf` and a Modelfile. UserError if llama.cpp could not read the
    model as it is, or reads back another."""
    model = native(found.model, found.name)
    kind = architecture(model.config, found.name)
    if "tokenizer.json" not in found.files:
        raise UserError(f"{found.name} has no tokenizer, without which a GGUF file is of no use; export the whole run")
    tokenizer = Tokenizer(found.files, found.name)
    rows = tokenizer.vocab_size
    if rows > model.vocab_size:
        raise UserError(f"{found.name}: the tokenizer has {rows} tokens, the model {model.vocab_size}; use its own")
    generation: dict[str, Any] = json.loads(found.generation) if found.generation else SAMPLING
    stops = _stops(tokenizer, found.eos, generation.get("eos_token_id"))
    values, notes = vocabulary(tokenizer, stops)
    wanted = quantize or _TYPES.get(model.output_weight.dtype, "f32")
    values = _general(kind, name) | hyperparameters(model.config, kind, model.context, rows) | values
    tensors = to_gguf(model.weights(), model.config, kind, rows)
    out.mkdir(parents=True)
    path = out / f"{name}-{wanted}.gguf"
    types = write_file(path, values, tensors, wanted)
    chat = Chat(tokenizer) if own_template(tokenizer.files) else None
    text, more = modelfile(path.name, chat, _names_of(tokenizer, stops), model.context, generation)
    (out / "Modelfile").write_text(text, encoding="utf-8", newline="\n")
    if rows < model.vocab_size:
        notes.append(f"{model.vocab_size - rows} rows of the embedding have no token and are left out")
    for line in [*_types_told(types, tensors, wanted), *notes, *more]:
        say(line)
    return Written(path, wanted, values, _read_back(path, values, tensors, model, kind, tokenizer), tokenizer, stops)


def _stops(tokenizer: Tokenizer, *others: int | list[int] | None) -> list[int]:
    """The tokens that end an answer: by the template, and by the configs."""
    named = {number for entry in others for number in (entry if isinstance(entry, list) else [entry])}
    return sorted({number for number in named if number is not None} | set(ends_of(tokenizer)))


def _names_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The control tokens of these ids."""
    names = {number: token for token, number in tokenizer.control_ids.items()}
    return [names[number] for number in ids if number in names]


def _general(kind: str, name: str) -> dict[str, Any]:
    values: dict[str, Any] = {"general.architecture": kind, "general.type": "model"}
    if not any(word in name.lower() for word in _MISREAD):
        values["general.name"] = name
    return values


def _types_told(types: Mapping[str, str], tensors: Mapping[str, Tensor], wanted: str) -> list[str]:
    """Which tensors have another type than the one that was asked for, and why."""
    others = {n: t for n, t in types.items() if t != wanted and not (t == "f32" or tensors[n].dim() == 1)}
    counts = Counter(others.values())
    odd = [n for n in others if tensors[n].shape[-1] % BLOCK]
    out = []
    if odd:
        width = tensors[odd[0]].shape[-1]
        out.append(
            f"{len(odd)} of {len(types)} tensors are f16, not {wanted}: their rows are no multiple of {BLOCK} "
            f"({odd[0]}: {width})"
        )
    if counts["q8_0"]:
        out.append(f"the embedding{' and the output are' if counts['q8_0'] > 1 else ' is'} q8_0, not {wanted}")
    return out


# ---- the file, read back ---------------------------------------------------------------------------------------------


def _read_back(
    path: Path,
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    model: CausalLM,
    kind: str,
    tokenizer: Tokenizer,
) -> CausalLM:
    """The model in the file, in float32. UserError if metadata, a tensor or the ids of a text are not what they were
    to be."""
    file = read(path)
    differing = [key for key, value in values.items() if not _same(file.values.get(key), value)]
    differing += [name for name in tensors if name not in file.tensors or _is_off(name, file, tensors[name])]
    differing += [name for name in file.tensors if name not in tensors]
    if differing:
        raise UserError(f"{path.name} holds another {', '.join(differing[:3])} than the model; export it again")
    texts = [text for text, special in proof_texts(tokenizer) if not special]
    reader = Reader(file.values)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        if reader.encode(text) != ids:
            raise UserError(f"the tokenizer in {path.name} reads {text!r} otherwise; export it again")
    return _model_of(file.tensors, model, kind, tokenizer.vocab_size)


def _same(found: Any, written: Any) -> bool:
    if isinstance(written, float):
        return isinstance(found, float) and abs(found - written) <= 1e-6 * abs(written)
    return found == written


def _is_off(name: str, file: Any, written: Tensor) -> bool:
    found, wide = file.tensors[name], written.detach().float()
    if found.shape != wide.shape:
        return True
    largest = wide.abs().amax(-1, keepdim=True)
    return bool(((found - wide).abs() > _ROUNDING[file.types[name]] * largest + 1e-7).any())


def _model_of(tensors: Mapping[str, Tensor], model: CausalLM, kind: str, rows: int) -> CausalLM:
    content = model.description() | {"vocab_size": rows}
    read_model = CausalLM.empty(content, "the GGUF file", torch.float32, "cpu")
    state = from_gguf(tensors, read_model.config, kind)
    missing = read_model.weights().keys() - state.keys()
    if missing:
        raise UserError(f"the GGUF file lacks {', '.join(sorted(missing)[:3])}; export it again")
    read_model.overlay(state)
    return read_model.eval()
