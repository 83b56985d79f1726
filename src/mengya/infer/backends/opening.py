"""From what a user names (a directory, a file, an address) to a backend; which one is chosen here and nowhere else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from mengya.errors import UserError
from mengya.infer.backends import Backend
from mengya.infer.backends.kinds import Kind
from mengya.infer.backends.llama_cpp import LlamaCpp
from mengya.infer.backends.local import Local
from mengya.infer.backends.openai import Remote
from mengya.infer.backends.sentences import Sentences, is_sentences
from mengya.infer.backends.vllm import Vllm
from mengya.infer.engine import RUNNING
from mengya.model.adapters import is_adapter
from mengya.model.load import check_is_model, load_merged, load_model
from mengya.model.precision import Weights
from mengya.model.vocabulary import check_has_rows
from mengya.runtime import pick_device
from mengya.text.chat import Chat
from mengya.text.template import own_template
from mengya.text.tokenizer import Tokenizer


def kind_of(source: str, wanted: Kind = "auto") -> Kind:
    if wanted != "auto":
        return wanted
    if source.startswith(("http://", "https://")):
        return "openai"
    return "llama.cpp" if source.endswith(".gguf") else "auto"


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE each, with JSON as the value, or a text. UserError if there is no "="."""
    found: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not (key and equals):
            raise UserError(f"--options {option} is not KEY=VALUE, such as tensor_parallel_size=2")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def open_backend(
    source: str,
    *,
    backend: Kind = "auto",
    adapter: Path | None = None,
    name: str | None = None,
    weights: Weights = "exact",
    running: int = RUNNING,
    tokens: int | None = None,
    trust_remote_code: bool = False,
    vllm_options: Mapping[str, Any] | None = None,
) -> Backend:
    """`name`: what it is called; left out, the last part of the source. `adapter`: the directory of one, which goes
    into the model of the source. `vllm_options`: of vLLM's engine, by its own names, such as tensor_parallel_size.
    Others: see `Local`. UserError if there is no such model, or it cannot be used so."""
    kind = kind_of(source, backend)
    if vllm_options and kind != "vllm":
        raise UserError(f"{', '.join(vllm_options)}: only vLLM has such options; name it as the backend")
    if kind == "openai" or kind == "llama.cpp" or kind == "vllm":
        if adapter is not None or weights != "exact":
            what = "an address" if kind == "openai" else source  # an address may hold a key
            raise UserError(f"adapters and weights are for model directories; {what} is opened by {kind}")
        if kind == "openai":
            return Remote(source, name=name)
        if kind == "llama.cpp":
            return LlamaCpp(Path(source), name=name, tokens=tokens)
        return Vllm(Path(source), name=name, trust_remote_code=trust_remote_code, options=vllm_options)
    if is_sentences(Path(source)) and kind != "native":
        if adapter is not None or weights != "exact":
            raise UserError(f"adapters and weights are for models that answer; {source} makes embeddings")
        return Sentences(Path(source), name=name)
    return open_local(
        Path(source), implementation=kind, adapter=adapter, name=name, weights=weights, running=running, tokens=tokens,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip


def open_local(
    directory: Path,
    *,
    implementation: Literal["auto", "native", "transformers"] = "auto",
    adapter: Path | None = None,
    weights: Weights = "exact",
    running: int = RUNNING,
    tokens: int | None = None,
    trust_remote_code: bool = False,
    name: str | None = None,
) -> Local:
    """A model directory, or that of an adapter, which is merged into its model, or into the one in `directory` if it is
    the `adapter`. UserError if it is neither, or if its tokenizer does not fit it.

    float32 on a CPU, bfloat16 on a GPU."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give a model directory, such as one that the sft stage wrote")
    check_is_model(directory)
    own = adapter is not None and (adapter / "tokenizer.json").is_file()  # its vocabulary may have grown
    tokenizer = Tokenizer.load(adapter if adapter is not None and own else directory)
    chat = Chat(tokenizer) if own_template(tokenizer.files) else None
    device = pick_device()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if adapter is not None or is_adapter(directory):
        base = None if adapter is None else directory
        model = load_merged([adapter or directory], trust_remote_code=trust_remote_code, base=base).to(device, dtype)
    else:
        model = load_model(directory, dtype, device, implementation=implementation, trust_remote_code=trust_remote_code)
    check_has_rows(directory, tokenizer.vocab_size, model.vocab_size)
    return Local(name or directory.name, model, tokenizer, chat, running=running, tokens=tokens, weights=weights)
