"""mengya ask MODEL --kb NAME "question": an answer from documents, with its sources."""

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mengya.commands import Command
from mengya.errors import UserError
from mengya.infer.backends.kinds import Kind
from mengya.infer.request import Sampling
from mengya.model.precision import Weights
from mengya.rag.finding import Finding
from mengya.schema import Argument, config

if TYPE_CHECKING:
    from mengya.rag.answer import Answer


@config
class Config:
    """Answer questions from the documents of a knowledge base, and show where the answers come from."""

    model: Annotated[str, Argument("MODEL")]
    """A model directory, a .gguf file, or the address of an OpenAI-compatible server."""
    questions: Annotated[list[str], Argument("QUESTION")]
    """Several are a conversation: each may lean on those before."""
    kb: list[str] = dataclasses.field(default_factory=list)
    """Name of the knowledge base (may be given several times)."""
    folder: Path = Path("knowledge")
    """Where the knowledge bases are."""
    backend: Kind = "auto"
    """Who computes; auto: what MODEL is decides."""
    weights: Weights = "exact"
    """As what the weights are kept: as they are, or rounded, which is faster. Of our own models on a CPU."""
    sampling: Sampling = Sampling(temperature=0)
    finding: Finding = Finding()

    def __post_init__(self) -> None:
        if not self.kb:
            raise UserError("name the knowledge base: --kb NAME")


def run(config: Config) -> None:
    from mengya.infer.backends.opening import open_backend
    from mengya.rag.answer import answer
    from mengya.rag.store import KnowledgeFolder

    folder = KnowledgeFolder(config.folder)
    bases = [folder.open(name) for name in config.kb]
    retriever = config.finding.open(bases)
    backend = open_backend(config.model, backend=config.backend, weights=config.weights, running=1)
    history: list[dict[str, str]] = []
    with contextlib.closing(backend):
        for question in config.questions:
            found = answer(backend, bases, question, history, retriever=retriever, sampling=config.sampling)
            _show(question, found)
            history += [{"role": "user", "content": question}, {"role": "assistant", "content": found.text}]


def _show(question: str, found: "Answer") -> None:
    """Without control characters: documents may hold some, and models repeat them."""
    import sys

    from mengya.serve.terminal import Screen

    screen = Screen(sys.stdout)
    if found.query != question:
        screen.note(f"搜索 searched: {found.query}")
    screen.write(f"{found.text}\n")
    for citation in found.citations:
        pages = f"第 {', '.join(map(str, citation.pages))} 页 page" if citation.pages else ""
        place = " · ".join(filter(None, [citation.file, pages, *citation.headings]))
        screen.write(f"[{citation.number}] {place}\n    {' '.join(citation.quote.split())}\n")


COMMAND = Command(Config, run)
