"""From logits to the next token.

One step is `repetition penalty -> temperature -> top_k -> top_p -> min_p -> draw`, the order and the meaning of
transformers' logits processors: each filter normalises over what the filters before it left. All three keep a prefix of
the row in descending order, so usually only its best tokens are sorted. Of tokens with exactly equal scores at the edge
of that prefix, some are kept (transformers' `top_k` keeps all of them).
"""

import math
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from mengya.infer.request import Sampling

_HEAD = 256
"""Best tokens that are sorted first; the whole vocabulary is sorted only if `top_p` needs more of them."""

_GREEDY = 1e-6
"""Temperatures below count as 0: dividing by them would overflow float32."""


def draws(seed: int | None, prompt: Sequence[int], count: int) -> Tensor:
    """(count,) float64 in [0, 1), one number for each token of an answer to `prompt` (token ids).

    They depend on the seed, the prompt and the position alone, so that an answer is the same beside any others; up to
    the rounding of logits, which a batch of another size may change. Seed None: from the system's entropy.
    """
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        key = blake2b(b",".join(b"%d" % number for number in (seed, *prompt)), digest_size=8).digest()
        generator.manual_seed(int.from_bytes(key, "big", signed=True))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def sample(logits: Tensor, sampling: Sampling, uniform: Tensor, seen: Tensor | None = None) -> Tensor:
    """(B,) int64 next tokens from (B, V) float32 `logits`; `seen` (B, V) bool: tokens that the penalty applies to.

    `uniform` (B,): for each row a number of `draws`, with which the cumulative distribution is inverted."""
    if sampling.repetition_penalty != 1:
        assert seen is not None, "a repetition penalty needs the tokens seen so far"
        logits = penalise(logits, sampling.repetition_penalty, seen)
    if sampling.temperature < _GREEDY:
        return logits.argmax(-1)
    scores = logits / sampling.temperature
    if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
        return _draw(scores, uniform)
    values, tokens, kept = candidates(scores, sampling)
    choice = _draw(values.masked_fill(~kept, -math.inf), uniform)
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


def _draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """(B,) index drawn from softmax(scores (B, N)); float64, so that no token of probability 0 is hit by rounding."""
    cumulative = scores.double().softmax(-1).cumsum(-1)
    tokens = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return tokens.clamp_(max=scores.shape[1] - 1)
