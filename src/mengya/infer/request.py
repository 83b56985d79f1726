"""What is asked of a model: how tokens are drawn, what ends an answer; and what comes back, piece by piece."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from mengya.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor  # options are declared with these classes, and `--help` does not wait for torch


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Sampling:
    """How an answer is drawn. UserError for a value out of range."""

    temperature: float = 0.7
    """0: always the likeliest token, the filters then have no effect; 1: the model's own distribution."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0: all."""
    top_p: float = 0.9
    """Keep the fewest likeliest tokens whose probabilities sum to top_p; 1: all."""
    min_p: float = 0.0
    """Keep tokens at least min_p times as likely as the likeliest; 0: all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer so far become less likely (Keskar et al. 2019); 1: off."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time that it stands in the answer so far, as in OpenAI's API; 0: off."""
    presence_penalty: float = 0.0
    """Taken off the logits of the tokens that stand in the answer so far; 0: off."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    min_new_tokens: int = 0
    """Before so many tokens, none that ends the answer is drawn."""
    seed: int | None = None
    """The same seed and prompt give the same answer, whatever is asked beside it; none: another each time."""

    def __post_init__(self) -> None:
        def within(value: float, low: float, high: float) -> bool:
            return math.isfinite(value) and low <= value <= high

        checks = (
            (within(self.temperature, 0, math.inf), "temperature", "0 (always the likeliest token) or more, as 0.7"),
            (0 <= self.top_k < 2**31, "top_k", "0 (off) or a number of tokens, such as 50"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1, such as 0.9; 1 turns it off"),
            (0 <= self.min_p <= 1, "min_p", "from 0 (off) to 1, such as 0.05"),
            (
                within(self.repetition_penalty, 0, math.inf) and self.repetition_penalty > 0,
                "repetition_penalty",
                "above 0; 1 turns it off, 1.1 is mild",
            ),
            (within(self.frequency_penalty, -2, 2), "frequency_penalty", "from -2 to 2; 0 turns it off"),
            (within(self.presence_penalty, -2, 2), "presence_penalty", "from -2 to 2; 0 turns it off"),
            (1 <= self.max_new_tokens < 2**31, "max_new_tokens", "1 or more, such as 256"),
            (0 <= self.min_new_tokens <= self.max_new_tokens, "min_new_tokens", "from 0 to max_new_tokens"),
            (self.seed is None or -(2**63) <= self.seed < 2**63, "seed", "a whole number of at most 63 bits"),
        )
        for valid, name, remedy in checks:
            if not valid:
                raise UserError(f"{name}={getattr(self, name)} is out of range; choose {remedy}")


class Conversation(NamedTuple):
    """Messages to be answered, as `Chat.encode` takes them, and the tools that the answer may call."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[dict] | None = None


Prompt = Conversation | str | Sequence[int]
"""A conversation, written by the model's chat template; a text to be continued; or token ids."""


class Grammar(Protocol):
    """What the tokens of one answer are held to; one object for each choice."""

    def mask(self) -> "Tensor":
        """(V,) bool: tokens that may come next. Tokens that end an answer are among them where it may end."""
        ...

    def accept(self, token: int) -> None:
        """The next token, one that `mask` allows."""
        ...


class GrammarMaker(Protocol):
    """Makes the grammar of each choice, so that what all of them share is worked out once."""

    def __call__(self) -> Grammar: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """UserError for a value out of range. What depends on the model is checked where it is submitted."""

    prompt: Prompt
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    n: int = 1
    """Choices, each with random numbers of its own."""
    stop: Sequence[str] = ()
    """Texts that end the answer, and are not part of it."""
    stop_ids: Sequence[int] = ()
    """Tokens that end the answer besides the model's own."""
    ignore_eos: bool = False
    """Go on after a token that ends an answer: only `stop`, `stop_ids` and the length end it."""
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Token -> what is added to its logit."""
    logprobs: int | None = None
    """With each token its log-probability, and those of so many likeliest ones; None: no log-probabilities."""
    prompt_logprobs: bool = False
    """Also those of the prompt's tokens (`logprobs` says how many)."""
    grammar: GrammarMaker | None = None

    def __post_init__(self) -> None:
        checks = (
            (1 <= self.n <= MAX_CHOICES, "n", self.n, f"from 1 to {MAX_CHOICES}"),
            (len(self.stop) <= MAX_STOPS, "stop", f"{len(self.stop)} texts", f"at most {MAX_STOPS}"),
            (all(self.stop), "stop", "an empty text", "texts with at least one character"),
            (len(self.stop_ids) <= MAX_STOPS, "stop_ids", f"{len(self.stop_ids)} tokens", f"at most {MAX_STOPS}"),
            (
                all(math.isfinite(bias) and abs(bias) <= 100 for bias in self.logit_bias.values()),
                "logit_bias",
                "a number out of range",
                "numbers from -100 to 100",
            ),
            (
                self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
                "logprobs",
                self.logprobs,
                f"from 0 to {MAX_LOGPROBS}",
            ),
        )
        for valid, name, value, remedy in checks:
            if not valid:
                raise UserError(f"{name}={value} is out of range; choose {remedy}")

    def ends(self, own: frozenset[int]) -> frozenset[int]:
        """Tokens that end an answer; `own`: those of the model."""
        return frozenset(self.stop_ids) | (frozenset() if self.ignore_eos else own)


MAX_CHOICES, MAX_STOPS, MAX_LOGPROBS = 128, 64, 20
LOWEST = -9999.0
"""Stands for the log-probability of what is impossible, as in OpenAI's API: JSON has no infinity."""


class TooLong(UserError):
    """A prompt that leaves no room for an answer."""

    def __init__(self, message: str, tokens: int, context: int):
        super().__init__(message)
        self.tokens, self.context = tokens, context


def check_tokens(request: Request, prompt: Sequence[int], context: int, tokens: int) -> None:
    """UserError if a model with so many tokens cannot answer `prompt`: `TooLong` if that leaves no room in the
    `context`."""
    if not prompt:
        raise UserError("the prompt is empty; give at least one token")
    unknown = next((t for t in (*prompt, *request.logit_bias, *request.stop_ids) if not 0 <= t < tokens), None)
    if unknown is not None:
        raise UserError(f"token {unknown} is not in the vocabulary; use 0 to {tokens - 1}")
    if len(prompt) >= context:
        raise TooLong(
            f"the prompt has {len(prompt)} tokens, which leave no room for an answer in the context of {context}; "
            "shorten it",
            len(prompt),
            context,
        )


class LogProb(NamedTuple):
    """Of one token, in nats; `LOWEST` at least."""

    token: int
    bytes: bytes
    """What the token stands for; it may be a part of a character."""
    logprob: float | None
    """None for the first token of a prompt."""
    top: tuple["LogProb", ...] = ()
    """The likeliest tokens in its place, the best first."""


Finish = Literal["stop", "length", "cancelled", "error"]


class Usage(NamedTuple):
    prompt_tokens: int
    completion_tokens: int
    """Of one choice; those that end it or belong to a stop text count, too."""
    cached_tokens: int = 0
    """Of the prompt, that were not computed again."""


class Piece(NamedTuple):
    """What one choice has grown by. Joined, the texts of a choice are its answer: whole characters, no stop texts."""

    choice: int
    text: str
    tokens: tuple[int, ...] = ()
    """Those that this piece is made of, or that were drawn since the last one."""
    logprobs: tuple[LogProb, ...] = ()
    """Of these tokens, if they were asked for; without those that end the answer."""
    finish: Finish | None = None
    """In the last piece of a choice: a stop text or token, the longest answer or a full context, a cancellation, or an
    error."""
    usage: Usage | None = None
    """In the last piece of a choice."""
    prompt_logprobs: tuple[LogProb, ...] = ()
    """In the first piece of choice 0, if they were asked for."""
    error: str | None = None
    """What went wrong, in words for the user."""
