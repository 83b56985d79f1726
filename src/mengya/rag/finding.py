"""The models that find passages besides their words, as commands name them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mengya.schema import config

if TYPE_CHECKING:
    from mengya.rag.retrieve import Retriever
    from mengya.rag.store import KnowledgeBase


@config
class Finding:
    """How passages are found; without models, by their words alone."""

    embeddings: Path | None = None
    """The sentence-transformers directory that the knowledge bases were indexed with: its vectors find, too."""
    reranker: Path | None = None
    """The directory of a cross-encoder, which puts the passages that were found into a better order."""

    def open(self, bases: Iterable["KnowledgeBase"]) -> "Retriever":
        """For these bases. UserError if a directory cannot be used, or a base has vectors of another one."""
        from mengya.rag.retrieve import Retriever
        from mengya.rag.vectors import open_embedder, open_reranker

        retriever = Retriever(
            open_embedder(self.embeddings) if self.embeddings else None,
            open_reranker(self.reranker) if self.reranker else None,
        )
        for base in bases:
            retriever.check(base)
        return retriever
