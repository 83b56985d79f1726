"""Who computes the answers, behind one small interface: our engine, other engines, or a server elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mengya.infer.request import GrammarMaker, Piece, Prompt, Request

if TYPE_CHECKING:
    from torch import Tensor

Deliver = Callable[[Piece], None]
"""Takes the pieces of a request, in order; called from a thread of the backend, so it must neither block nor raise.
Every choice ends with a piece that has a `finish`, exactly one."""


class Load(NamedTuple):
    running: int
    waiting: int
    blocks: int
    """Of keys and values, in all; 0 where there is no such thing."""
    free_blocks: int
    """Those that no running request holds."""


class Ticket(Protocol):
    """A request that was taken."""

    prompt_tokens: int
    """0 where that is not known before the answer."""
    begun: "Future[None] | None"
    """Where somebody else computes: done once they have taken the request, or failed with the UserError that the answer
    ends with, too. None: it was taken."""

    def cancel(self) -> None:
        """Stop it, soon and from any thread; its open choices finish as "cancelled". Nothing if it has ended."""
        ...


class Backend(Protocol):
    """Answers requests, many at once. All methods may be called from any thread."""

    name: str
    """Of the model, without a path."""
    about: str
    """Its size and the like, in words for the user."""
    context: int
    """The longest prompt and answer together, in tokens; 0 where that is not known."""

    def submit(self, request: Request, deliver: Deliver) -> Ticket:
        """Begin to answer, without waiting for anybody else. UserError, before anything is delivered, if the request
        cannot be answered: `TooLong`, a template that refuses the conversation, what this backend cannot do."""
        ...

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt. UserError if this backend does not know."""
        ...

    def embed(self, prompts: Sequence[Sequence[int]]) -> "Tensor":
        """(prompts, C) float32: the mean of the last hidden states of each. UserError if it cannot."""
        ...

    def grammar(self, schema: Mapping[str, Any]) -> GrammarMaker:
        """What holds answers to a JSON schema. UserError for one that cannot be followed, or if this backend cannot."""
        ...

    def load(self) -> Load:
        """How busy it is."""
        ...

    def close(self) -> None:
        """Cancel what is open, and free everything."""
        ...
