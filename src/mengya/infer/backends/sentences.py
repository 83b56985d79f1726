"""Embedding models in the form of sentence-transformers, by that library: they make vectors, and no answers."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mengya.errors import UserError
from mengya.infer.backends import Deliver, Load, Ticket
from mengya.infer.request import GrammarMaker, Prompt, Request
from mengya.runtime import pick_device

INSTALL = "sentence-transformers is needed for that; pip install 'mengya[embeddings]'"


def is_sentences(directory: Path) -> bool:
    return (directory / "modules.json").is_file()


class Sentences:
    """A directory with modules.json. UserError if it needs code of its own, or has pickles in place of safetensors."""

    def __init__(self, directory: Path, *, name: str | None = None):
        _check(directory)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(f"{directory}: {INSTALL}") from error
        try:
            self._model = SentenceTransformer(
                str(directory),
                device=str(pick_device()),
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except Exception as error:  # the library raises whatever its parts do
            raise UserError(
                f"{directory} cannot be loaded ({type(error).__name__}: {error}); download it again"
            ) from error
        self._lock = threading.Lock()
        """Held while the tokenizer works, which is for one thread at a time."""
        self.name = name or directory.name
        self.context = int(self._model.max_seq_length or 0)
        self.about = f"向量 vectors · 上下文 context {self.context}"

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """(texts, C) float32, of unit length; what is longer than the context is cut."""
        with self._lock:
            found = self._model.encode(
                list(texts), normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
            )
        return found.float().cpu()

    def encode(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            raise self._silent()
        with self._lock:
            return self._model.tokenizer(prompt, truncation=False, verbose=False)["input_ids"] if prompt else []

    @torch.inference_mode()
    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The model's own pooling, not the mean of hidden states."""
        found = []
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=self._model.device)
            features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            found.append(self._model(features)["sentence_embedding"][0].float().cpu())
        return torch.stack(found)

    def submit(self, request: Request, deliver: Deliver) -> Ticket:
        raise self._silent()

    def grammar(self, schema: Mapping[str, Any]) -> GrammarMaker:
        raise self._silent()

    def load(self) -> Load:
        return Load(0, 0, 0, 0)

    def close(self) -> None:
        pass

    def _silent(self) -> UserError:
        return UserError(f"{self.name} makes embeddings and no answers; ask another model")


def _check(directory: Path) -> None:
    """Only modules of the library itself, only safetensors: a directory is data, and runs no code."""
    try:
        modules = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
        types = [str(module["type"]) for module in modules]
        folders = [directory / str(module["path"]) for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{directory}/modules.json cannot be read; download the directory again") from error
    for kind in types:
        if not kind.startswith("sentence_transformers."):
            raise UserError(f"{directory} needs code of its own ({kind}), which is not run; use another model")
    inside = directory.resolve()
    for folder in folders:
        if not folder.resolve().is_relative_to(inside):
            raise UserError(f"{directory}/modules.json names {folder}, which is outside; use another model")
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        if pickles and not any(folder.glob("*.safetensors")):
            raise UserError(f"{folder} has {pickles[0]}, a pickle, which is not opened; use a model with safetensors")
