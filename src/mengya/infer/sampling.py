"""From logits to the next token.

One step is `repetition penalty -> temperature -> top_k -> top_p -> min_p -> draw`, the order and the meaning of
transformers' logits processors: each filter normalises over what the filters before it left. All three keep a prefix of
the row in descending order, so usually only its best tokens are sorted. Of tokens with exactly equal scores at the edge
of that prefix, some are kept (transformers' `top_k` keeps all of them).
"""

import math

import torch
from torch import Tensor

from mengya.infer.request import Sampling

_HEAD = 256
"""Best tokens that are sorted first; the whole vocabulary is sorted only if `top_p` needs more of them."""

_GREEDY = 1e-6
"""Temperatures below count as 0: dividing by them would overflow float32."""


def make_generator(seed: int | None, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded with `seed`, or, where it is None, from the system's entropy."""
    generator = torch.Generator(device)
    return generator.manual_seed(generator.seed() if seed is None else seed)


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator, seen: Tensor | None = None) -> Tensor:
    """(B,) int64 next tokens from (B, V) float32 `logits`; `seen` (B, V) bool: tokens that the penalty applies to.

    Draws one uniform number a row and inverts the cumulative distribution: `torch.multinomial` would draw V of them."""
    if sampling.repetition_penalty != 1:
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
    """Three (B, N) tensors: the N best of (B, V) `scores` in each row, descending; their tokens; whether the filters
    keep them. The filters keep none of the other tokens."""
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
    tokens = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]
    return tokens.clamp_(max=scores.shape[1] - 1)
