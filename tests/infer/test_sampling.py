"""The draw: against transformers' logits processors, its distribution, and rows that know nothing of each other."""

import math
import random
import time

import numpy as np
import pytest
import torch

from mengya.errors import UserError
from mengya.infer.request import LOWEST, Request, Sampling
from mengya.infer.sampling import Drawer, Drawn, best, draw, draws, keep, score

processors = pytest.importorskip("transformers.generation.logits_process", reason="needs the dev extra")


def scores_of(rows: int, vocab_size: int, spread: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def drawer(
    sampling: Sampling, vocab_size: int, prompt: tuple = (1, 2), choice: int = 0, ends: tuple = (), **options
) -> Drawer:
    request = Request(prompt=prompt, sampling=sampling, **options)
    return Drawer(request, prompt, choice, vocab_size, frozenset(ends))


def tokens(drawn: list[Drawn]) -> list[int]:
    assert all(one.error is None for one in drawn)
    return [one.token for one in drawn]


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
    """The same, by our filters on the whole row."""
    scaled = scores / s.temperature
    values, places = torch.sort(scaled, dim=-1, descending=True)
    shares = scaled.double().softmax(-1).amax(-1, keepdim=True)
    floor = math.log(s.min_p) if s.min_p else -math.inf
    settings = np.array([[s.top_k if 0 < s.top_k < 1000 else math.inf, s.top_p if s.top_p < 1 else math.inf, floor]])
    kept = torch.from_numpy(keep(values.numpy(), shares.numpy(), settings.repeat(len(scores), 0)) > 0)
    return torch.full_like(scores, -math.inf).scatter(1, places, values.masked_fill(~kept, -math.inf))


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 30.0])  # nearly uniform (the whole row is sorted) to nearly certain
@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.9},
        {"top_p": 0.05},
        {"top_p": 1e-9},
        {"top_p": 1.0, "top_k": 7},
        {"top_p": 1.0, "top_k": 40},
        {"top_p": 1.0, "top_k": 10**6, "min_p": 0.1},
        {"top_p": 0.8, "top_k": 50, "min_p": 0.02},
        {"top_p": 1.0, "min_p": 1.0},
        {"top_p": 1.0, "top_k": 1},
    ],
)
def test_filters_as_transformers(options: dict, spread: float) -> None:
    s = Sampling(temperature=0.7, max_new_tokens=400, seed=0, **options)
    scores = scores_of(5, 1000, spread)
    reference = expected(scores, s)
    torch.testing.assert_close(filtered(scores, s), reference, rtol=0, atol=0)
    drawers = [drawer(s, 1000, prompt=(row,)) for row in range(5)]
    for _ in range(40):
        drawn = torch.tensor(tokens(draw(scores, drawers)))
        assert reference.gather(1, drawn[:, None]).isfinite().all()


@pytest.mark.parametrize("count", [1, 5, 32, 64])
@pytest.mark.parametrize("width", [70, 1000, 6400, 6401, 20_011])
def test_the_best_of_a_row(width: int, count: int) -> None:
    scores = scores_of(3, width, 1)
    values, places = best(scores, count)
    assert torch.equal(values, scores.topk(count)[0]) and torch.equal(scores.gather(1, places), values)


def test_penalties_and_bias() -> None:
    """In the order of vLLM: bias, repetition, frequency and presence; against transformers where it has them."""
    logits = scores_of(1, 50, 3)
    prompt, answer = (1, 2, 2, 49), [5, 6, 5]
    bias = {3: 100.0, 2: -50.0}
    for options in (
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -1.5},
        {"repetition_penalty": 0.5, "frequency_penalty": 0.7, "presence_penalty": 0.3},
    ):
        s = Sampling(temperature=0, **options)
        one = drawer(s, 50, prompt, logit_bias=bias)
        plain = torch.full((1, 50), -100.0)
        for token in answer:  # each is by far the likeliest
            forced = plain.clone()
            forced[0, token] = 1000
            assert tokens(draw(forced, [one])) == [token]
        wanted = logits.clone()
        for token, value in bias.items():
            wanted[0, token] += value
        if s.repetition_penalty != 1:
            seen = torch.tensor([[*prompt, *answer]])
            wanted = processors.RepetitionPenaltyLogitsProcessor(s.repetition_penalty)(seen, wanted)
        for token, count in ((5, 2), (6, 1)):
            wanted[0, token] -= s.frequency_penalty * count + s.presence_penalty
        order = wanted[0].argsort(descending=True).tolist()
        assert tokens(draw(logits, [one])) == order[:1]


def test_bias_bans_and_forces() -> None:
    logits = scores_of(2, 60, 1)
    likeliest = int(logits[0].argmax())
    drawers = [
        drawer(Sampling(temperature=0), 60, logit_bias={likeliest: -100}),
        drawer(Sampling(temperature=1, top_p=1), 60, logit_bias={7: 100}),
    ]
    first, second = tokens(draw(logits, drawers))
    assert first != likeliest and second == 7
    with pytest.raises(UserError, match="logit_bias names token 60; this model has tokens from 0 to 59"):
        drawer(Sampling(), 60, logit_bias={60: 1})
    with pytest.raises(UserError, match="stop_ids names token -1"):
        drawer(Sampling(), 60, stop_ids=(-1,))


def test_nothing_ends_before_min_new_tokens() -> None:
    logits = torch.zeros(1, 20)
    logits[0, [3, 4]], logits[0, 9] = 30.0, 5.0
    one = drawer(Sampling(temperature=0, min_new_tokens=2, max_new_tokens=5), 20, ends=(3, 4, 999))
    assert [tokens(draw(logits, [one]))[0] for _ in range(3)] == [9, 9, 3]


@pytest.mark.parametrize("options", [{}, {"top_p": 1.0}, {"top_p": 1.0, "top_k": 5}, {"temperature": 1.5}])
def test_draws_follow_the_distribution(options: dict) -> None:
    s = Sampling(seed=1, **options)
    row, rows = scores_of(1, 100, 2), 100
    drawers = [drawer(s, 100, prompt=(number,)) for number in range(rows)]
    counts = torch.zeros(100)
    for _ in range(300):
        drawn = torch.tensor(tokens(draw(row.expand(rows, -1), drawers)))
        counts += torch.bincount(drawn, minlength=100)
    probabilities, number = expected(row, s).softmax(-1)[0], 300 * rows
    assert not counts[probabilities == 0].any()
    error = (counts / number - probabilities).abs()
    assert (error < 4.5 * (probabilities * (1 - probabilities) / number).sqrt() + 1e-9).all()


def test_greedy_and_seed() -> None:
    logits = scores_of(4, 300, 1)
    likeliest = logits.argmax(-1).tolist()
    for temperature in (0, 1e-40, 1e-7):
        drawers = [drawer(Sampling(temperature=temperature), 300) for _ in range(4)]
        assert tokens(draw(logits, drawers)) == likeliest

    def answer(seed: int | None, choice: int = 0) -> list[int]:
        one = drawer(Sampling(temperature=5, seed=seed), 300, choice=choice)
        return [tokens(draw(logits[:1], [one]))[0] for _ in range(20)]

    assert answer(3) == answer(3)
    answers = [answer(3), answer(4), answer(None), answer(None), *(answer(3, choice) for choice in range(1, 5))]
    assert len(set(map(tuple, answers))) == len(answers)


def test_draws_depend_on_seed_prompt_choice_and_position() -> None:
    known = draws(3, [1, 2], 100)
    assert torch.equal(draws(3, [1, 2], 100), known) and known.unique().numel() == 100
    assert (known >= 0).all() and (known < 1).all()
    for seed, prompt in ((4, [1, 2]), (-3, [1, 2]), (3, [1, 3]), (3, [12]), (None, [1, 2])):
        assert not torch.equal(draws(seed, prompt, 100), known)
    assert not torch.equal(draws(3, [1, 2], 100, choice=1), known)
    long = draws(3, [1, 2], 1000).tolist()
    one = drawer(Sampling(seed=3), 10)
    assert [one.next_uniform() for _ in range(1000)] == long, "made in parts"


@pytest.mark.parametrize("vocab_size", [40, 1000, 6400])
def test_rows_do_not_influence_each_other(vocab_size: int) -> None:
    """The same tokens and log-probabilities, to the bit, alone and among rows of every kind."""
    kinds = [
        {"temperature": 0},
        {"top_p": 1.0},
        {"top_p": 0.9},
        {"top_p": 0.99, "temperature": 2.0},
        {"top_k": 20, "top_p": 1.0},
        {"top_k": 50, "top_p": 0.8},
        {"min_p": 0.05, "top_p": 1.0},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
        {"temperature": 0, "presence_penalty": 1.0, "min_new_tokens": 5},
        {"temperature": 1.0, "top_p": 0.5, "top_k": 10**6},
    ]
    noise = random.Random(0)
    logits = [
        scores_of(12, vocab_size, spread, seed) for seed, spread in enumerate((0.01, 1, 3, 8, 3, 1, 3, 3, 3, 0.1))
    ]

    def made(number: int) -> Drawer:
        options = {"logprobs": number % 4} if number % 2 else {"logit_bias": {number: 3.0}}
        sampling = Sampling(seed=number, max_new_tokens=50, **kinds[number])
        return drawer(sampling, vocab_size, prompt=(number,), ends=(5,), **options)

    alone = []
    for number in range(len(kinds)):
        one = made(number)
        alone.append([draw(logits[number][step : step + 1], [one])[0] for step in range(12)])
    for _ in range(3):
        drawers = {number: made(number) for number in range(len(kinds))}
        for step in range(12):
            rows = noise.sample(range(len(kinds)), len(kinds))
            beside = draw(torch.stack([logits[number][step] for number in rows]), [drawers[number] for number in rows])
            assert beside == [alone[number][step] for number in rows]


def test_rows_without_a_token_are_never_drawn() -> None:
    logits = scores_of(4, 70, 1)
    logits[:, 60:] = 1000.0
    logits[3, 65] = math.nan
    kinds = ({"temperature": 0}, {"top_p": 1.0}, {"top_p": 0.9}, {"top_k": 5})
    drawers = [drawer(Sampling(**options), 60, logprobs=20) for options in kinds]
    for _ in range(50):
        drawn = draw(logits, drawers)
        assert max(tokens(drawn)) < 60
        assert all(token < 60 for one in drawn for token, _ in one.scored.top)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_row_that_diverges_fails_by_itself(wrong: float) -> None:
    logits = scores_of(3, 100, 1)
    sound = logits.clone()
    logits[1, 17] = wrong
    made = [[drawer(Sampling(seed=1), 100, logprobs=1) for _ in range(3)] for _ in range(2)]
    drawn, reference = draw(logits, made[0]), draw(sound, made[1])
    assert "training diverged" in drawn[1].error and drawn[1].scored is None and made[0][1].position == 0
    assert drawn[0] == reference[0] and drawn[2] == reference[2]
    assert "training diverged" in draw(logits[1:2], made[0][1:2])[0].error


def test_extreme_logits() -> None:
    lowest = torch.finfo(torch.float32).min
    logits = torch.full((2, 600), lowest)
    logits[0, 3], logits[1, 599] = 5.0, -1e30
    for s in (Sampling(), Sampling(top_p=1), Sampling(top_k=4, min_p=0.5), Sampling(temperature=0)):
        drawn = draw(logits, [drawer(s, 600, logprobs=3) for _ in range(2)])
        assert tokens(drawn) == [3, 599]
        assert all(LOWEST <= value <= 0 for one in drawn for _, value in one.scored.top)
    huge = torch.zeros(1, 600)
    huge[0, 8] = 3e38
    for s in (Sampling(temperature=0.1), Sampling(temperature=0.1, top_p=1)):
        assert 0 <= tokens(draw(huge, [drawer(s, 600)]))[0] < 600


class Only:
    """A grammar of some tokens, always."""

    def __init__(self, *allowed: int):
        self.allowed, self.accepted = list(allowed), []

    def mask(self) -> torch.Tensor:
        mask = torch.zeros(30, dtype=torch.bool)
        mask[self.allowed] = True
        return mask

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def test_grammars() -> None:
    logits = scores_of(1, 30, 1)
    logits[0, [7, 8]] = 50.0
    hold = Only(4, 5)
    one = drawer(Sampling(temperature=0, seed=1), 30, ends=(7, 8), stop_ids=(8,), grammar=lambda: hold, logprobs=5)
    first = draw(logits, [one])[0]
    assert first.token in (4, 5) and hold.accepted == [first.token]
    assert math.isclose(first.scored.top[0][1], -math.log(2), abs_tol=1e-3), "of the model, not of the grammar"
    hold.allowed = [4, 7]
    assert draw(logits, [one])[0].token in (7, 8) and len(hold.accepted) == 1, "any end, where one may be"
    early = Sampling(temperature=0, min_new_tokens=3)
    hold.allowed = [4, 7]
    assert tokens(draw(logits, [drawer(early, 30, ends=(7,), grammar=lambda: hold)])) == [4]
    hold.allowed = [7]
    assert tokens(draw(logits, [drawer(early, 30, ends=(7,), grammar=lambda: hold)])) == [7]
    hold.allowed = []
    drawn = draw(logits.repeat(2, 1), [drawer(early, 30, grammar=lambda: hold), drawer(early, 30)])
    assert "grammar" in drawn[0].error and drawn[1].error is None


def test_log_probabilities() -> None:
    logits = scores_of(6, 500, 3)
    reference = logits.log_softmax(-1)
    found = score(logits, [0, 1, 2, 3, 4, 5], top=3)
    for row, one in enumerate(found):
        assert math.isclose(one.logprob, reference[row, row], rel_tol=1e-5)
        assert [token for token, _ in one.top] == reference[row].topk(3)[1].tolist()
    assert score(logits, [0] * 6, top=0)[0].top == ()
    logits[0, 1:], logits[1] = -math.inf, math.nan
    first, second = score(logits, [1, 1, 0, 0, 0, 0], top=20)[:2]
    assert first.logprob == LOWEST and first.top[0] == (0, 0.0) and second.logprob == LOWEST
    s = Sampling(temperature=0.3, top_k=2, repetition_penalty=1.5)
    drawn = draw(logits[2:3], [drawer(s, 500, prompt=(3, 4), logprobs=4)])[0]
    assert math.isclose(drawn.scored.logprob, reference[2, drawn.token], rel_tol=1e-5)
    assert len(drawn.scored.top) == 4


def test_a_step_takes_little_time() -> None:
    ranks = torch.rand(16, 6400, generator=torch.Generator().manual_seed(0)).argsort(-1) + 1.0
    logits = -2 * ranks.log()
    drawers = [drawer(Sampling(seed=row, max_new_tokens=10**6), 6400) for row in range(16)]
    times = []
    for _ in range(50):
        started = time.process_time()
        draw(logits, drawers)
        times.append(time.process_time() - started)
    assert min(times) < 0.004, "0.5 ms on an idle core"


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
