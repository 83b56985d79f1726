"""What an operator may choose, and what every part of the server shares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mengya.infer.backends import Backend
from mengya.infer.request import GrammarMaker, Sampling
from mengya.rag.retrieve import Retriever
from mengya.rag.store import KnowledgeFolder
from mengya.serve.api.keys import Keys

GrammarFor = Callable[[Backend, Mapping[str, Any]], GrammarMaker]
"""(backend, JSON schema) -> what holds an answer to it: JSON and nothing else. UserError for a schema that cannot be
followed. Called from a thread, as it may take a while."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    open_answers: int = 128
    """Answers that are written at once, or wait for memory; more are refused with 429."""
    new_tokens: int | None = None
    """Longest answer; a request that asks for more gets this. None: as long as the context allows."""
    answer_seconds: float = 600
    """Longest time for a request, waiting included."""
    body: int = 8 << 20
    body_seconds: float = 30
    """For the body to arrive."""
    head_seconds: float = 30
    """For the head of a request to arrive."""
    write_seconds: float = 30
    """For a client that does not read to take what is written."""
    drain_seconds: float = 30
    """For open answers to end, when the server is told to stop."""
    ping_seconds: float = 10
    """A stream that is silent for so long gets a comment, so that nothing between takes it for dead."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    models: Mapping[str, Backend]
    """By the names that clients use; the first is the default."""
    limits: Limits = field(default_factory=Limits)
    sampling: Sampling = field(default_factory=Sampling)
    """What requests get that do not say."""
    keys: Keys | None = None
    """Who may ask; None: everybody."""
    cors_origins: Sequence[str] = ()
    """Web pages that may ask, as "https://example.com"."""
    hosts: Sequence[str] | None = None
    """Host names that requests may be addressed to; None: any."""
    any_name: bool = False
    """A request for a model that is not served is answered by the first."""
    embed_ids: bool = False
    """Token ids may be embedded."""
    grammar_for: GrammarFor | None = None
    """None: `response_format` and required calls are refused."""
    knowledge: KnowledgeFolder | None = None
    """Whose knowledge bases may be asked; None: there are none."""
    retriever: Retriever = field(default_factory=Retriever)
    """How they are searched."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Path -> the name that stands for it in messages to clients."""
