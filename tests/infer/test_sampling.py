"""The draw: against transformers' logits processors, and its distribution."""

import math

import pytest
import torch

from mengya.errors import UserError
from mengya.infer.request import Sampling
from mengya.infer.sampling import candidates, draws, penalise, sample

processors = pytest.importorskip("transformers.generation.logits_process", reason="needs the dev extra")


def scores_of(rows: int, vocab_size: int, spread: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def expected(scores: torch.Tensor, s: Sampling) -> torch.Tensor:
    """(B, V) what transformers leaves, in the order in which `generate` applies it."""
    chain = [processors.TemperatureLogitsWarper(s.temperature)]
    chain += [processors.TopKLogitsWarper(s.top_k)] if s.top_k else []
    chain += [processors.TopPLogitsWarper(s.top_p)] if s.top_p < 1 else []
    chain += [processors.MinPLogitsWarper(s.min_p)] if s.min_p else []
    for process in chain:
        scores = process(None, scores)
    return scores


def filtered(scores: torch.Tensor, s: Sampling) -> torch.Tensor:
    values, tokens, kept = candidates(scores / s.temperature, s)
    return torch.full_like(scores, -math.inf).scatter(1, tokens, values.masked_fill(~kept, -math.inf))


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 30.0])  # nearly uniform (the whole row is sorted) to nearly certain
@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.9},
        {"top_p": 0.05},
        {"top_p": 1e-9},
        {"top_p": 1.0, "top_k": 7},
        {"top_p": 1.0, "top_k": 10**6, "min_p": 0.1},
        {"top_p": 0.8, "top_k": 50, "min_p": 0.02},
        {"top_p": 1.0, "min_p": 1.0},
        {"top_p": 1.0, "top_k": 1},
    ],
)
def test_filters_as_transformers(options: dict, spread: float) -> None:
    s = Sampling(temperature=0.7, **options)
    scores = scores_of(5, 1000, spread)
    torch.testing.assert_close(filtered(scores, s), expected(scores, s), rtol=0, atol=0)


def test_penalty_as_transformers() -> None:
    logits = scores_of(3, 50, 3)
    ids = torch.tensor([[1, 2, 2, 49], [0, 0, 0, 0], [5, 6, 7, 8]])
    seen = torch.zeros(3, 50, dtype=torch.bool).scatter_(1, ids, True)
    reference = processors.RepetitionPenaltyLogitsProcessor(1.3)(ids, logits.clone())
    torch.testing.assert_close(penalise(logits, 1.3, seen), reference, rtol=0, atol=0)
    greedy = sample(logits, Sampling(temperature=0, repetition_penalty=1.3), torch.zeros(3), seen)
    assert greedy.tolist() == reference.argmax(-1).tolist()


@pytest.mark.parametrize("options", [{}, {"top_p": 1.0}, {"top_p": 1.0, "top_k": 5}, {"temperature": 1.5}])
def test_draws_follow_the_distribution(options: dict) -> None:
    s = Sampling(**options)
    row = scores_of(1, 20, 2)
    number = 40_000
    tokens = sample(row.expand(number, -1), s, draws(1, [], number))
    assert tokens.shape == (number,) and tokens.dtype == torch.int64
    probabilities = expected(row, s).softmax(-1)[0]
    counts = torch.bincount(tokens, minlength=20)
    assert not counts[probabilities == 0].any()
    error = (counts / number - probabilities).abs()
    assert (error < 4.5 * (probabilities * (1 - probabilities) / number).sqrt() + 1e-9).all()


def test_greedy_and_seed() -> None:
    logits = scores_of(4, 300, 1)
    best = logits.argmax(-1).tolist()
    for temperature in (0, 1e-40, 1e-5):
        assert sample(logits, Sampling(temperature=temperature), draws(None, [], 4)).tolist() == best
    hot = Sampling(temperature=5)
    first, second = (sample(logits, hot, draws(3, [1, 2], 4)).tolist() for _ in range(2))
    assert first == second
    runs = {tuple(sample(logits.repeat(4, 1), hot, draws(None, [1, 2], 16)).tolist()) for _ in range(3)}
    assert len(runs) == 3


def test_draws_depend_on_seed_prompt_and_position() -> None:
    known = draws(3, [1, 2], 100)
    assert torch.equal(draws(3, [1, 2], 100), known) and known.unique().numel() == 100
    assert (known >= 0).all() and (known < 1).all()
    for seed, prompt in ((4, [1, 2]), (-3, [1, 2]), (3, [1, 3]), (3, [12]), (None, [1, 2])):
        assert not torch.equal(draws(seed, prompt, 100), known)


def test_rows_do_not_influence_each_other() -> None:
    """A nearly uniform neighbour has the whole row sorted; the draw of the others stays the same."""
    certain, flat = scores_of(1, 1000, 20), scores_of(1, 1000, 0.01)
    uniform = draws(0, [], 2)
    alone = sample(torch.cat([certain, certain]), Sampling(), uniform)
    beside = sample(torch.cat([certain, flat]), Sampling(), uniform)
    assert alone[0] == beside[0]


def test_extreme_logits() -> None:
    logits = torch.full((2, 600), -math.inf)
    logits[0, 3], logits[1, 599] = 5.0, -1e30
    for s in (Sampling(), Sampling(top_p=1), Sampling(top_k=4, min_p=0.5), Sampling(temperature=0)):
        assert sample(logits, s, draws(0, [], 2)).tolist() == [3, 599]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"max_new_tokens": 0},
        {"seed": 2**64},
    ],
)
def test_bad_values_name_value_and_remedy(options: dict) -> None:
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=f"{name}={value}.*choose".replace("+", r"\+")):
        Sampling(**options)
