"""The engine: requests that join and leave, choices, log-probabilities, cancelled and failing requests."""

import math

import pytest
import torch

from mengya.errors import UserError
from mengya.infer import engine as engines
from mengya.infer.engine import Engine
from mengya.infer.generate import generate
from mengya.infer.request import Piece, Request, Sampling, TooLong
from mengya.model.native.transformer import CausalLM

GREEDY = Sampling(temperature=0, max_new_tokens=12)
PROMPT = [5, 6, 7, 8] * 10


@pytest.fixture
def engine(model: CausalLM, tokenizer, by: str) -> Engine:
    return Engine(model, tokenizer, set())


def ask(engine: Engine, prompt: list[int] = PROMPT, **settings) -> tuple[list[Piece], engines.Job]:
    pieces: list[Piece] = []
    request = Request(prompt=prompt, **({"sampling": GREEDY} | settings))
    return pieces, engine.add(request, prompt, pieces.append)


def finish(engine: Engine) -> None:
    while engine.busy:
        engine.step()
    assert engine.pool.free == engine.pool.blocks


def tokens_of(pieces: list[Piece], choice: int = 0) -> list[int]:
    return [token for piece in pieces if piece.choice == choice for token in piece.tokens]


def test_requests_join_a_running_batch(engine: Engine, model: CausalLM, tokenizer) -> None:
    started = []
    for number in range(5):
        started.append(ask(engine, [number + 3] * (4 + number))[0])
        for _ in range(3):
            engine.step()
    assert engine.running > 1
    finish(engine)
    for number, pieces in enumerate(started):
        alone = ask(engine, [number + 3] * (4 + number))[0]
        finish(engine)
        assert tokens_of(pieces) == tokens_of(alone) and len(tokens_of(pieces)) == 12
        assert [piece.finish for piece in pieces if piece.finish] == ["length"] and pieces[-1].finish
        assert pieces[-1].usage.prompt_tokens == 4 + number and pieces[-1].usage.completion_tokens == 12


def test_a_long_prompt_does_not_stall_the_others(engine: Engine, monkeypatch) -> None:
    monkeypatch.setattr(engines, "STEP_TOKENS", 16)
    ask(engine, [9, 9, 9])
    engine.step()
    ask(engine, [4] * 200, sampling=Sampling(temperature=0, max_new_tokens=2))
    for count in range(2, 10):
        engine.step()
        assert [len(sequence.tokens) for sequence in engine._running] == [3 + count, 200]
    finish(engine)


def test_choices_share_their_prompt_and_differ(engine: Engine, monkeypatch) -> None:
    computed, plain = [], engine._steps.run
    monkeypatch.setattr(engine._steps, "run", lambda s: (computed.extend(len(x.tokens) for x in s), plain(s))[1])
    drawn = Sampling(temperature=1.5, seed=3, max_new_tokens=12)
    pieces, _ = ask(engine, n=4, sampling=drawn)
    finish(engine)
    answers = [tokens_of(pieces, choice) for choice in range(4)]
    assert len({tuple(answer) for answer in answers}) > 1 and all(len(answer) == 12 for answer in answers)
    assert sum(computed) == 40 + 3 * 8 + 4 * 11, "the two whole blocks of the prompt are computed once"
    assert [piece.usage.cached_tokens for piece in pieces if piece.finish] == [0, 32, 32, 32]
    [again] = generate(engine, [Request(prompt=PROMPT, n=4, sampling=drawn)])
    assert [list(choice.tokens) for choice in again] == answers
    [[first]] = generate(engine, [Request(prompt=PROMPT, sampling=drawn)])
    assert list(first.tokens) == answers[0]


def test_log_probabilities_are_the_models_own(engine: Engine, model: CausalLM) -> None:
    sampling = Sampling(temperature=0.3, top_k=5, seed=1, repetition_penalty=1.3, max_new_tokens=8)
    [[choice]] = generate(
        engine, [Request(prompt=PROMPT, sampling=sampling, logprobs=4, prompt_logprobs=True, logit_bias={7: -50})]
    )
    ids = [*PROMPT, *choice.tokens]
    with torch.no_grad():
        table = model(torch.tensor([ids]))[0].log_softmax(-1)
    assert len(choice.prompt_logprobs) == 40 and choice.prompt_logprobs[0].logprob is None
    for place, each in enumerate((*choice.prompt_logprobs, *choice.logprobs)):
        assert each.token == ids[place]
        if place:
            row = table[place - 1]
            assert each.logprob == pytest.approx(float(row[ids[place]]), abs=1e-4)
            assert [other.token for other in each.top] == row.topk(4).indices.tolist()
            assert all(math.isfinite(other.logprob) for other in each.top)
    assert b"".join(each.bytes for each in choice.logprobs).decode("utf-8", "replace") == choice.text


def test_memory_that_runs_short_changes_no_answer(model: CausalLM, tokenizer, by: str) -> None:
    drawn = Sampling(temperature=1.2, seed=5, max_new_tokens=60)
    prompts = [[number + 1] * (20 + number) for number in range(6)]
    requests = [Request(prompt=prompt, sampling=drawn, logprobs=1, prompt_logprobs=True) for prompt in prompts]
    tight, roomy = Engine(model, tokenizer, set(), tokens=256), Engine(model, tokenizer, set())
    put_off = []
    plain = tight._put_off
    tight._put_off = lambda sequence: (put_off.append(sequence), plain(sequence))[1]
    for one, other in zip(generate(tight, requests), generate(roomy, requests), strict=True):
        assert one[0].tokens == other[0].tokens
        assert len(one[0].prompt_logprobs) == len(other[0].prompt_logprobs)
    assert put_off and tight.pool.free == tight.pool.blocks


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_cancelled_request_gives_back_its_blocks(engine: Engine, steps: int) -> None:
    pieces, job = ask(engine, n=2)
    other, _ = ask(engine, [3, 4, 5])
    for _ in range(steps):
        engine.step()
    job.cancel()
    engine.step()
    assert [piece.finish for piece in pieces if piece.finish] == ["cancelled"] * 2
    assert engine.running == 1
    finish(engine)
    assert other[-1].finish == "length" and len(tokens_of(other)) == 12


def test_a_step_that_fails_ends_only_what_it_computed(engine: Engine, monkeypatch) -> None:
    pieces, _ = ask(engine)
    plain = engine._steps.run

    def broken(spans):
        raise MemoryError("no room")

    monkeypatch.setattr(engine._steps, "run", broken)
    engine.step()
    assert pieces[-1].finish == "error" and "no room" in pieces[-1].error
    monkeypatch.setattr(engine._steps, "run", plain)
    assert not engine.busy
    ask(engine)
    finish(engine)


def test_a_grammar_that_cannot_be_made_ends_only_its_request(engine: Engine) -> None:
    def broken():
        raise UserError("no such form")

    other, _ = ask(engine)
    pieces, _ = ask(engine, n=2, grammar=broken)
    finish(engine)
    assert [(piece.finish, piece.error) for piece in pieces] == [("error", "no such form")] * 2
    assert other[-1].finish == "length"


def test_a_grammar_holds_every_choice(engine: Engine) -> None:
    class Even:
        def __init__(self):
            self.taken = []

        def mask(self):
            return torch.arange(300) % 2 == 0

        def accept(self, token):
            self.taken.append(token)

    made = []
    request = Request(
        prompt=PROMPT, n=2, sampling=Sampling(temperature=2, seed=0), grammar=lambda: made.append(Even()) or made[-1]
    )
    [choices] = generate(engine, [request])
    assert [list(choice.tokens) for choice in choices] == [each.taken for each in made]
    assert all(token % 2 == 0 for choice in choices for token in choice.tokens)


def test_stop_texts_and_tokens(engine: Engine, tokenizer) -> None:
    [[free]] = generate(engine, [Request(prompt=PROMPT, sampling=GREEDY)])
    end = free.tokens[3]
    [[told]] = generate(engine, [Request(prompt=PROMPT, sampling=GREEDY, stop_ids=[end])])
    assert told.finish == "stop" and told.tokens == free.tokens[: free.tokens.index(end)]
    if len(free.text) > 2:
        [[cut]] = generate(engine, [Request(prompt=PROMPT, sampling=GREEDY, stop=[free.text[2]])])
        assert cut.finish == "stop" and cut.text == free.text[: free.text.index(free.text[2])]


def test_least_lengths_and_ends_that_do_not_count(model: CausalLM, tokenizer, complete) -> None:
    free = complete(model, [PROMPT], GREEDY)[0]
    engine = Engine(model, tokenizer, {free[2]})
    [[short]] = generate(engine, [Request(prompt=PROMPT, sampling=GREEDY)])
    [[on]] = generate(engine, [Request(prompt=PROMPT, sampling=GREEDY, ignore_eos=True)])
    longer = Sampling(temperature=0, max_new_tokens=12, min_new_tokens=6)
    [[least]] = generate(engine, [Request(prompt=PROMPT, sampling=longer)])
    assert len(short.tokens) <= 2 and list(on.tokens) == free and len(least.tokens) >= 6
    assert free[2] not in least.tokens[:6]


def test_what_cannot_be_answered_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(UserError, match="empty"):
        ask(engine, [])
    with pytest.raises(UserError, match="token 300 is not in the vocabulary; use 0 to 299"):
        ask(engine, [1, 300])
    with pytest.raises(UserError, match="token 999"):
        ask(engine, logit_bias={999: 1.0})
    with pytest.raises(TooLong) as told:
        ask(engine, [1] * 256)
    assert (told.value.tokens, told.value.context) == (256, 256)
    assert not engine.busy


@pytest.mark.parametrize(
    "settings",
    [dict(n=0), dict(n=1000), dict(stop=[""]), dict(stop=["a"] * 10_000), dict(logprobs=-1), dict(logit_bias={1: 1e9})],
)
def test_requests_out_of_range(settings: dict) -> None:
    with pytest.raises(UserError, match="out of range; choose"):
        Request(prompt=[1], **settings)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"])
@pytest.mark.parametrize("value", [math.nan, -3.0, math.inf])
def test_samplings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UserError, match="is out of range; choose"):
        Sampling(**{name: value})
