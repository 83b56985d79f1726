"""From logits to the next token.

One step is `repetition penalty -> temperature -> top_k -> top_p -> min_p -> draw`, the order and the meaning of
transformers' logits processors: each filter normalises over what the filters before it left. All three keep a prefix of
the row in descending order, so usually only its best tokens are sorted. Of tokens with exactly equal scores at the edge
of that prefix, some are kept (transformers' `top_k` keeps all of them).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mengya.errors import UserError

_HEAD = 256
"""Best tokens that are sorted first; the whole vocabulary is sorted only if `top_p` needs more of them."""

_GREEDY = 1e-6
"""Temperatures below count as 0: dividing by them would overflow float32."""


@dataclass(frozen=True)
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
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    seed: int | None = None
    """The same seed, prompts and machine give the same answers; none: different ones each time."""

    def __post_init__(self) -> None:
        finite = math.isfinite(self.temperature) and math.isfinite(self.repetition_penalty)
        checks = (
            (finite and self.temperature >= 0, "temperature", "0 (always the likeliest token) or more, such as 0.7"),
            (self.top_k >= 0, "top_k", "0 (off) or a number of tokens, such as 50"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1, such as 0.9; 1 turns it off"),
            (0 <= self.min_p <= 1, "min_p", "from 0 (off) to 1, such as 0.05"),
            (finite and self.repetition_penalty > 0, "repetition_penalty", "above 0; 1 turns it off, 1.1 is mild"),
            (self.max_new_tokens >= 1, "max_new_tokens", "1 or more"),
            (self.seed is None or -(2**63) <= self.seed < 2**63, "seed", "a whole number of at most 63 bits"),
        )
        for valid, name, remedy in checks:
            if not valid:
                raise UserError(f"{name}={getattr(self, name)} is out of range; choose {remedy}")

    @property
    def penalised(self) -> bool:
        """Whether `sample` needs `seen`."""
        return self.repetition_penalty != 1.0

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator seeded with `seed`, or from the system's entropy."""
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator, seen: Tensor | None = None) -> Tensor:
    """(B,) int64 next tokens from (B, V) float32 `logits`; `seen` (B, V) bool: tokens that the penalty applies to.

    Draws one uniform number a row and inverts the cumulative distribution: `torch.multinomial` would draw V of them."""
    if sampling.penalised:
        assert seen is not None, "a repetition penalty needs the tokens seen so far"
        logits = penalise(logits, sampling.repetition_penalty, seen)
    if sampling.temperature < _GREEDY:
        return logits.argmax(-1)
    scores = logits / sampling.temperature
    if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
        return _draw(scores, generator)
    values, tokens, kept = candidates(scores, sampling)
    choice = _draw(values.masked_fill(~kept, -math.inf), generator)
    return tokens.gather(1, choice[:, None])[:, 0]


def penalise(logits: Tensor, penalty: float, seen: Tensor) -> Tensor:
    """(B, V) logits with those of `seen` tokens divided by `penalty` where positive, multiplied where negative."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def candidates(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Per row the N best of (B, V) `scores`, descending, their tokens, and which of these the filters keep: all (B, N).

    No token outside the N best is kept."""
    vocab_size = scores.shape[-1]
    if 0 < sampling.top_k < vocab_size:
        values, tokens = scores.topk(sampling.top_k)
        return values, tokens, _kept(values, values, sampling)
    for size in (min(_HEAD, vocab_size), vocab_size):
        values, tokens = scores.topk(size) if size < vocab_size else scores.sort(-1, descending=True)
        kept = _kept(values, scores, sampling)
        if size == vocab_size or not kept[:, -1].any():
            break
    return values, tokens, kept


def _kept(values: Tensor, support: Tensor, sampling: Sampling) -> Tensor:
    """(B, N) bool for descending `values`; probabilities are normalised over `support` (B, M).

    Always a prefix of the row, never empty."""
    kept = torch.ones_like(values, dtype=torch.bool)
    if sampling.top_p < 1:
        probabilities = (values - support.logsumexp(-1, keepdim=True)).exp()
        before = probabilities.cumsum(-1) - probabilities  # mass of the better tokens
        kept &= before < sampling.top_p
    if sampling.min_p > 0:
        kept &= values >= values[:, :1] + math.log(sampling.min_p)
    kept[:, 0] = True  # rounding must not leave a row without a token
    return kept


def _draw(scores: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) index drawn from softmax(scores (B, N)); float64, so that no token of probability 0 is hit by rounding."""
    cumulative = scores.double().softmax(-1).cumsum(-1)
    uniform = torch.rand(scores.shape[0], 1, generator=generator, device=scores.device, dtype=torch.float64)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0].clamp_(
        max=scores.shape[1] - 1
    )
