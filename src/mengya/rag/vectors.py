"""Models that find and order passages, from their directories."""

import threading
from collections.abc import Sequence
from pathlib import Path

from mengya.errors import UserError
from mengya.infer.backends.sentences import INSTALL, Sentences, is_sentences
from mengya.manifest import digest, sha256_of
from mengya.rag.retrieve import Rerank
from mengya.rag.store import Embedder
from mengya.runtime import pick_device


def open_embedder(directory: Path) -> Embedder:
    """A sentence-transformers directory. UserError if it is none, or the library is missing."""
    if not is_sentences(directory):
        raise UserError(f"{directory} has no modules.json; give a sentence-transformers directory")
    model = Sentences(directory)
    weights = sorted(path for path in directory.rglob("*.safetensors"))
    content = digest([sha256_of(path) for path in weights])
    return Embedder(f"{model.name} ({content[:12]})", lambda texts: model.vectors(texts).numpy())


def open_reranker(directory: Path) -> Rerank:
    """The directory of a cross-encoder with one score. UserError if it is none, or the library is missing."""
    if not (directory / "config.json").is_file() or not any(directory.glob("*.safetensors")):
        raise UserError(f"{directory} is no cross-encoder; give a directory with config.json and safetensors")
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        raise UserError(f"{directory}: {INSTALL}") from error
    model = CrossEncoder(
        str(directory),
        device=str(pick_device()),
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True},
    )
    if model.num_labels != 1:
        raise UserError(f"{directory} gives {model.num_labels} scores; use a cross-encoder that gives one")

    lock = threading.Lock()  # its tokenizer is for one thread at a time

    def rerank(question: str, texts: Sequence[str]) -> Sequence[float]:
        with lock:
            return model.predict([(question, text) for text in texts], show_progress_bar=False).tolist()

    return rerank
