"""Preference accuracy against log-probabilities computed one token at a time."""

from types import SimpleNamespace

import pytest
import torch

from mengya.errors import UserError
from mengya.evaluate.preference import preference_accuracy


def pair(prompt: str, chosen: str, rejected: str, history: tuple[dict, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(prompt=[*history, {"role": "user", "content": prompt}], chosen=chosen, rejected=rejected)


def mean_log_prob(model, chat, prompt: list[dict], completion: str) -> float:
    ids, _ = chat.encode(prompt, add_generation_prompt=True)
    scores = []
    for token in [*chat.tokenizer.encode(completion), chat.end]:
        with torch.no_grad():
            scores.append(torch.log_softmax(model(torch.tensor([ids]))[0, -1].double(), dim=0)[token].item())
        ids = [*ids, token]
    return sum(scores) / len(scores)


def test_against_one_token_at_a_time(make_model, chat) -> None:
    model = make_model(context=64).eval()
    history = ({"role": "user", "content": "1"}, {"role": "assistant", "content": "an earlier answer"})
    pairs = [
        pair("hi", "yes", "no, never"),
        pair("q", "a", "bcd"),
        pair("x", "long one", "y"),
        pair("2", "b", "c", history),
    ]
    margins = [
        mean_log_prob(model, chat, p.prompt, p.chosen) - mean_log_prob(model, chat, p.prompt, p.rejected) for p in pairs
    ]
    result, margin = preference_accuracy(model, chat, pairs)
    assert result.accuracy.correct == sum(each > 0 for each in margins)
    assert 0 < result.accuracy.correct < 4, "choose pairs on which the random model disagrees with itself"
    assert result.accuracy.total == 4
    assert margin == pytest.approx(sum(margins) / 4, rel=1e-5)


def test_swapping_turns_the_result_round(make_model, chat) -> None:
    model = make_model(context=64)
    there, margin_there = preference_accuracy(model, chat, [pair("q", "abc", "d")])
    back, margin_back = preference_accuracy(model, chat, [pair("q", "d", "abc")])
    assert there.accuracy.correct + back.accuracy.correct == 1
    assert margin_there == pytest.approx(-margin_back)


def test_a_tie_is_no_success(make_model, chat) -> None:
    result, margin = preference_accuracy(make_model(context=64), chat, [pair("q", "same", "same")])
    assert (result.accuracy.correct, margin) == (0, 0.0)


def test_a_long_prompt_keeps_the_completion_and_loses_its_beginning(make_model, chat) -> None:
    model = make_model(context=16).eval()
    _, margin = preference_accuracy(model, chat, [pair("p" * 100, "chosen", "no")])
    prompt, _ = chat.encode([{"role": "user", "content": "p" * 100}], add_generation_prompt=True)

    def tail(completion: str) -> float:
        body = [*chat.tokenizer.encode(completion), chat.end]
        kept = prompt[-(17 - 7) :]  # "chosen" + <|im_end|> leave room for ten ids, which both completions get
        with torch.no_grad():
            logs = torch.log_softmax(model(torch.tensor([(kept + body)[:-1]]))[0].double(), dim=1)
        return sum(logs[len(kept) - 1 + i, token].item() for i, token in enumerate(body)) / len(body)

    assert margin == pytest.approx(tail("chosen") - tail("no"), rel=1e-5)


def test_a_completion_beyond_the_context_is_scored_as_far_as_it_fits(make_model, chat) -> None:
    result, _ = preference_accuracy(make_model(context=16), chat, [pair("q", "c" * 50, "r" * 90)])
    assert result.accuracy.total == 1


def test_no_pairs_is_the_users_fault(make_model, chat) -> None:
    with pytest.raises(UserError, match="hold out some"):
        preference_accuracy(make_model(), chat, [])
