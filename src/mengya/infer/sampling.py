"""From logits to the next token of each row of a batch, every row by its own request.

One step is `grammar and min_new_tokens -> logit_bias -> repetition penalty -> frequency and presence penalties ->
temperature -> top_k -> top_p -> min_p -> draw`. From the temperature on, order and meaning are those of transformers'
logits processors: each filter normalises over what the filters before it left. vLLM adds the bias there, too, and
OpenAI's API says that it is added to what the model computes, so it stands before the penalties; transformers would
penalise first, and then add it. The penalties that look at the answer alone are OpenAI's and vLLM's.

No row has a part in what another draws: each operation works on every row by itself, and what is sorted of a row
depends on that row alone. Of tokens with exactly equal scores at the edge of what a filter keeps, some are kept.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mengya.errors import UserError
from mengya.infer.request import LOWEST, MAX_LOGPROBS, Request, Sampling

_HEADS = (32, 64, 512)
"""So many of the best tokens are sorted, one after the other until the filters need no more; the whole row at last."""

_BLOCK = 16
"""Scores in each of the blocks in which the best ones are sought."""

_SUMMED = 64
"""Probabilities in each of the blocks of which one is drawn."""

_GREEDY = 1e-6
"""Temperatures below count as 0: dividing by them would overflow float32."""

_AT_ONCE = 256
"""Random numbers that are made at a time."""

DIVERGED = "the model computes NaN or infinite logits: its training diverged; use an earlier checkpoint"


class Scored(NamedTuple):
    """The log-probability of one token in the model's own distribution, in nats, `LOWEST` at least."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """Token and log-probability of the likeliest tokens in its place, the best first."""


class Drawn(NamedTuple):
    """The next token of one row."""

    token: int
    scored: Scored | None = None
    """If the request asks for it."""
    error: str | None = None
    """Why there is no token, in words for the user; the answer is over."""


def _generator(seed: int | None, prompt: Sequence[int], choice: int) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        data = b",".join(b"%d" % number for number in (seed, *prompt))
        key = blake2b(data, digest_size=8, salt=choice.to_bytes(8, "big")).digest()
        generator.manual_seed(int.from_bytes(key, "big", signed=True))
    return generator


def draws(seed: int | None, prompt: Sequence[int], count: int, choice: int = 0) -> Tensor:
    """(count,) float64 in [0, 1), one number for each token of an answer to `prompt` (token ids).

    They depend on the seed, the prompt, the choice and the position alone, so that an answer is the same beside any
    others; up to the rounding of logits, which a batch of another size may change. Seed None: from the system's
    entropy."""
    return torch.rand(count, generator=_generator(seed, prompt, choice), dtype=torch.float64)


class _Seen:
    """Tokens that the penalties apply to, and what is taken off their logits for standing in the answer."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int]):
        self._sampling = sampling
        self._slots: dict[int, int] = {}
        self._tokens, self._offsets = np.empty(256, np.int64), np.zeros(256, np.float32)
        self._counts: Counter[int] = Counter()
        for token in set(prompt):
            self._slot(token)

    def _slot(self, token: int) -> int:
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._tokens):
            self._tokens, self._offsets = (np.concatenate([a, np.zeros_like(a)]) for a in (self._tokens, self._offsets))
        self._tokens[slot] = token
        return slot

    def add(self, token: int) -> None:
        self._counts[token] += 1
        taken = self._sampling.frequency_penalty * self._counts[token] + self._sampling.presence_penalty
        self._offsets[self._slot(token)] = taken

    def tokens(self) -> np.ndarray:
        return self._tokens[: len(self._slots)]

    def offsets(self) -> np.ndarray:
        return self._offsets[: len(self._slots)]


class Drawer:
    """How the tokens of one choice are drawn, and what that depends on of those before."""

    def __init__(self, request: Request, prompt: Sequence[int], choice: int, vocab_size: int, ends: frozenset[int]):
        """`prompt`: its tokens. `vocab_size`: tokens that exist; logits may have more columns, which are never drawn.
        `ends`: tokens that end the answer. UserError if the request names a token that does not exist."""
        for name, tokens in (("logit_bias", request.logit_bias), ("stop_ids", request.stop_ids)):
            for token in tokens:
                if not 0 <= token < vocab_size:
                    raise UserError(f"{name} names token {token}; this model has tokens from 0 to {vocab_size - 1}")
        self.sampling = request.sampling
        self.logprobs = request.logprobs
        self.vocab_size = vocab_size
        self.position = 0
        """Tokens drawn so far."""
        self.bias = _sparse(request.logit_bias)
        self.greedy = self.sampling.temperature < _GREEDY
        self.filters = self.sampling.top_k > 0 or self.sampling.top_p < 1 or self.sampling.min_p > 0
        self.seen = _seen(self.sampling, prompt)
        self._ends = ends
        self._end_tokens = np.array(sorted(end for end in ends if end < vocab_size), np.int64)
        self._own_ends = torch.tensor([end for end in self._end_tokens.tolist() if end not in request.stop_ids])
        self._grammar = request.grammar() if request.grammar else None
        self._generator = None if self.greedy else _generator(self.sampling.seed, prompt, choice)
        self._uniform: list[float] = []

    def forbidden(self) -> np.ndarray | None:
        """Tokens that must not end the answer yet, if no grammar says what may."""
        early = self._grammar is None and self.position < self.sampling.min_new_tokens
        return self._end_tokens if early and len(self._end_tokens) else None

    def allowed(self) -> Tensor | None:
        """(vocab_size,) bool: what the grammar lets stand next; None without one. UserError if there is nothing.

        All tokens that end the answer may stand where those of the grammar may, which are the model's own. An answer
        that cannot go on ends, even before `min_new_tokens`."""
        if self._grammar is None:
            return None
        mask = self._grammar.mask()[: self.vocab_size].clone()
        ends = torch.from_numpy(self._end_tokens)
        if len(self._own_ends):
            mask[ends] = mask[self._own_ends].any()
        if self.position < self.sampling.min_new_tokens:
            longer = mask.index_fill(0, ends, False)
            mask = longer if longer.any() else mask
        if not mask.any():
            raise UserError("no token of this model goes on as the grammar wants; use a simpler schema")
        return mask

    def next_uniform(self) -> float:
        """The random number of this position; 0 if none is needed."""
        if self._generator is None:
            return 0.0
        if not self._uniform:
            block = torch.rand(_AT_ONCE, generator=self._generator, dtype=torch.float64)
            self._uniform = block.flip(0).tolist()
        return self._uniform.pop()

    def advance(self, token: int) -> None:
        self.position += 1
        if self.seen is not None:
            self.seen.add(token)
        if self._grammar is not None and token not in self._ends:
            self._grammar.accept(token)


def _seen(sampling: Sampling, prompt: Sequence[int]) -> _Seen | None:
    if sampling.repetition_penalty != 1:
        return _Seen(sampling, prompt)
    return _Seen(sampling, ()) if sampling.frequency_penalty or sampling.presence_penalty else None


def _sparse(numbers: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(list(numbers), np.int64), np.array(list(numbers.values()), np.float32)


@torch.inference_mode()
def draw(logits: Tensor, drawers: Sequence[Drawer]) -> list[Drawn]:
    """The next token of each row of (R, V) float32 `logits`, by the drawer of that row, which it advances.

    A row with an error has token 0, and its drawer stays as it was."""
    logits = logits[:, : drawers[0].vocab_size]
    errors, masks = dict.fromkeys(_diverged(logits), DIVERGED), {}
    for row, drawer in enumerate(drawers):
        try:
            if row not in errors and (mask := drawer.allowed()) is not None:
                masks[row] = mask
        except UserError as error:
            errors[row] = str(error)
    scores = _edited(logits, drawers, masks)
    tokens = [0] * len(drawers)
    sure = [row for row, drawer in enumerate(drawers) if drawer.greedy and row not in errors]
    plain = [row for row, d in enumerate(drawers) if not (d.greedy or d.filters) and row not in errors]
    filtered = [row for row, drawer in enumerate(drawers) if not drawer.greedy and drawer.filters and row not in errors]
    for rows, pick in ((sure, _best_of), (plain, _any_of), (filtered, _filtered)):
        if rows:
            chosen = pick(_rows(scores, rows), [drawers[row] for row in rows])
            for row, token in zip(rows, chosen, strict=True):
                tokens[row] = token
    scored = _scored_rows(logits, drawers, tokens, errors)
    drawn = []
    for row, (drawer, token) in enumerate(zip(drawers, tokens, strict=True)):
        if row not in errors:
            drawer.advance(token)
        drawn.append(Drawn(token, scored.get(row), errors.get(row)))
    return drawn


def _rows(values: Tensor, rows: Sequence[int]) -> Tensor:
    return values if len(rows) == len(values) else values[list(rows)]


def _diverged(logits: Tensor) -> list[int]:
    """Rows that are not finite. One product: no finite row overflows in it, and any other one shows."""
    sums = logits @ logits.new_full((logits.shape[1],), 1e-30)
    return [row for row, value in enumerate(sums.tolist()) if not math.isfinite(value)]


def _edited(logits: Tensor, drawers: Sequence[Drawer], masks: Mapping[int, Tensor]) -> Tensor:
    """The logits with what changes those of single tokens: everything that stands before the temperature."""
    ends = [(row, tokens) for row, drawer in enumerate(drawers) if (tokens := drawer.forbidden()) is not None]
    biases = [(row, drawer.bias) for row, drawer in enumerate(drawers) if len(drawer.bias[0])]
    seen = [(row, drawer.seen) for row, drawer in enumerate(drawers) if drawer.seen is not None]
    if not (ends or biases or seen or masks):
        return logits
    scores = logits.clone(memory_format=torch.contiguous_format)
    width, flat = scores.shape[1], scores.view(-1)
    for row, mask in masks.items():
        scores[row].masked_fill_(~mask.to(scores.device), -math.inf)
    if ends:
        flat[_index([(row, tokens) for row, tokens in ends], width).to(flat.device)] = -math.inf
    if biases:
        index = _index([(row, tokens) for row, (tokens, _) in biases], width).to(flat.device)
        flat[index] += torch.from_numpy(np.concatenate([values for _, (_, values) in biases])).to(flat.device)
    if seen:
        index = _index([(row, one.tokens()) for row, one in seen], width).to(flat.device)
        factors = np.array([drawers[row].sampling.repetition_penalty for row, _ in seen], np.float32)
        repeated = torch.from_numpy(np.repeat(factors, [len(one.tokens()) for _, one in seen])).to(flat.device)
        offsets = torch.from_numpy(np.concatenate([one.offsets() for _, one in seen])).to(flat.device)
        flat[index] = penalise(flat[index], repeated) - offsets
    return scores


def _index(tokens_of: Sequence[tuple[int, np.ndarray]], width: int) -> Tensor:
    """Where tokens of rows stand in rows of `width`, one after the other."""
    return torch.from_numpy(np.concatenate([tokens + row * width for row, tokens in tokens_of]))


def penalise(logits: Tensor, penalty: Tensor) -> Tensor:
    """The logits of seen tokens divided by `penalty` where positive, multiplied where negative."""
    return torch.where(logits < 0, logits * penalty, logits / penalty)


def _best_of(scores: Tensor, drawers: Sequence[Drawer]) -> list[int]:
    if scores.device.type == "cpu":  # where torch takes 30 times as long as numpy
        return scores.numpy().argmax(-1).tolist()
    return scores.argmax(-1).tolist()


def _temperatures(scores: Tensor, drawers: Sequence[Drawer]) -> Tensor:
    given = [drawer.sampling.temperature for drawer in drawers]
    return torch.tensor(given, dtype=torch.float32, device=scores.device)[:, None]


def _any_of(scores: Tensor, drawers: Sequence[Drawer]) -> list[int]:
    """First a block of tokens is drawn, then one of it: sums take a tenth of the time of cumulative ones."""
    probabilities = (scores / _temperatures(scores, drawers)).softmax(-1)
    padding = -probabilities.shape[1] % _SUMMED
    blocks = (pad(probabilities, (0, padding)) if padding else probabilities).view(len(drawers), -1, _SUMMED)
    uniform = np.array([drawer.next_uniform() for drawer in drawers])[:, None]
    block, rest = invert(blocks.sum(-1).cpu().numpy(), uniform)
    rows = torch.arange(len(drawers), device=scores.device)
    within, _ = invert(blocks[rows, torch.from_numpy(block).to(scores.device)].cpu().numpy(), rest)
    return (block * _SUMMED + within).tolist()


def _filtered(scores: Tensor, drawers: Sequence[Drawer]) -> list[int]:
    vocab_size = scores.shape[1]
    samplings = [drawer.sampling for drawer in drawers]
    limits = [s.top_k if 0 < s.top_k < vocab_size else math.inf for s in samplings]
    top_p = [s.top_p if s.top_p < 1 else math.inf for s in samplings]
    floors = [math.log(s.min_p) if s.min_p else -math.inf for s in samplings]
    settings = np.array([limits, top_p, floors, [drawer.next_uniform() for drawer in drawers]]).T
    scaled = scores / _temperatures(scores, drawers)
    logprobs = scaled.log_softmax(-1)
    result = [0] * len(drawers)
    waiting = list(range(len(drawers)))
    for size in (*(head for head in _HEADS if head < vocab_size), vocab_size):
        rows = [row for row in waiting if limits[row] <= size or limits[row] == math.inf]
        if not rows:
            continue
        values, tokens = best(_rows(scaled, rows), size)
        shares = _rows(logprobs, rows).gather(1, tokens[:, :1]).double().exp()
        masses = keep(values.cpu().numpy(), shares.cpu().numpy(), settings[rows, :3])
        places, _ = invert(masses, settings[rows, 3:])
        found = tokens.cpu().numpy()[np.arange(len(rows)), places].tolist()
        for row, token, least in zip(rows, found, masses[:, -1].tolist(), strict=True):
            if least == 0 or limits[row] <= size or size == vocab_size:
                result[row] = token
                waiting.remove(row)
    return result


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row of (R, V) `scores`, descending, and their places: two (R, count).

    Each of them is in one of the `count` blocks with the highest maxima, in which a few are sought much faster."""
    width = scores.shape[1]
    if count == width:
        return torch.sort(scores, dim=-1, descending=True, stable=True)
    blocks = -(-width // _BLOCK)
    if 4 * count > blocks:
        return scores.topk(count)
    padding = blocks * _BLOCK - width
    parts = (pad(scores, (0, padding), value=-math.inf) if padding else scores.contiguous()).view(-1, _BLOCK, blocks)
    chosen = parts.amax(1).topk(count, sorted=False)[1]
    values, places = parts.gather(2, chosen[:, None].expand(-1, _BLOCK, -1)).flatten(1).topk(count)
    part = places // count
    return values, part * blocks + chosen.gather(1, places - part * count)


def keep(values: np.ndarray, shares: np.ndarray, settings: np.ndarray) -> np.ndarray:
    """(R, N) float64, proportional to the probabilities of the best tokens; 0 for what the filters leave out, which is
    all but a prefix.

    `values` (R, N) scores, descending; `shares` (R, 1) the probability of the best one in its whole row; `settings`
    (R, 3): top_k and top_p, infinite if they are off, and the logarithm of min_p."""
    limits, top_p, floors = settings[:, :1], settings[:, 1:2], settings[:, 2:]
    below = values.astype(np.float64) - values[:, :1]
    inside = np.arange(values.shape[1]) < limits
    masses = np.where(inside, np.exp(below), 0.0)
    total = np.where(np.isinf(limits), 1 / shares, masses.sum(-1, keepdims=True))
    better = masses.cumsum(-1) - masses  # mass of the better tokens
    masses *= (better < top_p * total) & (below >= floors)
    masses[:, 0] = 1  # rounding must not leave a row without a token
    return masses


def invert(masses: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R,) places drawn from (R, N) `masses`, each with a probability proportional to its own: where the cumulative
    distribution passes `uniform` (R, 1). And (R, 1): by which part of its mass it passes there."""
    cumulative = masses.cumsum(-1, dtype=np.float64)
    total = cumulative[:, -1:]
    points = np.minimum(uniform * total, np.nextafter(total, 0))
    places = (cumulative <= points).sum(-1)
    rows = np.arange(len(masses))
    own = masses[rows, places][:, None]
    return places, ((points - cumulative[rows, places][:, None]) / own + 1).clip(0, 1)


def _scored_rows(
    logits: Tensor, drawers: Sequence[Drawer], tokens: Sequence[int], errors: Mapping[int, str]
) -> dict[int, Scored]:
    """What was drawn, of the rows that ask for log-probabilities."""
    rows = [row for row, drawer in enumerate(drawers) if drawer.logprobs is not None and row not in errors]
    if not rows:
        return {}
    tops = [drawers[row].logprobs or 0 for row in rows]
    found = score(_rows(logits, rows), [tokens[row] for row in rows], max(tops))
    return {row: scored._replace(top=scored.top[:top]) for row, top, scored in zip(rows, tops, found, strict=True)}


@torch.inference_mode()
def score(logits: Tensor, tokens: Sequence[int], top: int) -> list[Scored]:
    """The log-probability of each of (T,) tokens by (T, V) float32 logits, as many columns as there are tokens, and
    those of the `top` likeliest ones, `MAX_LOGPROBS` at most."""
    logprobs = logits.log_softmax(-1).nan_to_num_(nan=LOWEST).clamp_(min=LOWEST)
    index = torch.tensor(tokens, device=logits.device)[:, None]
    own = logprobs.gather(1, index)[:, 0].tolist()
    if not top:
        return [Scored(value, ()) for value in own]
    # Always as many, so that among equal ones the same are named whoever else asks for how many.
    values, places = best(logprobs, min(MAX_LOGPROBS, logprobs.shape[1]))
    tables = (zip(*row, strict=True) for row in zip(places[:, :top].tolist(), values[:, :top].tolist(), strict=True))
    return [Scored(value, tuple(table)) for value, table in zip(own, tables, strict=True)]
