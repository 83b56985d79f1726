"""Generation in a batch: against transformers' `generate`, against one prompt at a time, and at its edges."""

import copy
import random

import pytest
import torch

from mengya.errors import UserError
from mengya.infer.request import Sampling, TooLong
from mengya.model.native.transformer import CausalLM

GREEDY = Sampling(temperature=0, max_new_tokens=20)


def prompts_of(lengths: list[int], vocab_size: int = 300, seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(vocab_size) for _ in range(length)] for length in lengths]


LENGTHS = [5, 1, 30, 17, 17, 2, 60, 8, 9]


def busy_stop_ids(complete, model: CausalLM, prompts: list[list[int]]) -> set[int]:
    """Stop tokens that end the rows at different steps, so that the batch shrinks again and again."""
    free = complete(model, prompts, GREEDY, set())
    return {row[3 + 2 * i] for i, row in enumerate(free[:6])}


@pytest.mark.parametrize("family", ["model", "qwen"])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_as_transformers(complete, by, family: str, penalty: float, request, tmp_path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra")
    model = request.getfixturevalue(family)
    model.save(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompts = prompts_of(LENGTHS)
    stop_ids = busy_stop_ids(complete, model, prompts)
    sampling = Sampling(temperature=0, max_new_tokens=20, repetition_penalty=penalty)
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            temperature=None,
            top_p=None,
            max_new_tokens=20,
            repetition_penalty=penalty,
            eos_token_id=sorted(stop_ids),
            pad_token_id=0,
        )
        row = out[0, len(prompt) :].tolist()
        expected.append(row[:-1] if row[-1] in stop_ids else row)
    assert complete(model, prompts, sampling, stop_ids) == expected
    assert len({len(row) for row in expected}) > 2, "the rows should end at different steps"


@pytest.mark.parametrize("settings", [{"running": 1}, {"running": 3}, {"tokens": 256}, {}], ids=str)
def test_batch_equals_single(complete, by, model: CausalLM, settings: dict) -> None:
    """However many run at a time, and where memory is so short that answers have to make room for others."""
    prompts = prompts_of(LENGTHS * 2)
    stop_ids = busy_stop_ids(complete, model, prompts)
    sampling = Sampling(temperature=0, max_new_tokens=20, repetition_penalty=1.3)
    alone = [complete(model, [prompt], sampling, stop_ids)[0] for prompt in prompts]
    assert complete(model, prompts, sampling, stop_ids, **settings) == alone


def test_cached_equals_full_forward(complete, by, model: CausalLM) -> None:
    prompts = prompts_of(LENGTHS)
    for prompt, row in zip(prompts, complete(model, prompts, GREEDY, set()), strict=True):
        ids = list(prompt)
        for token in row:
            assert model(torch.tensor([ids]))[0, -1].argmax() == token
            ids.append(token)


def test_ends_at_the_context(complete, by, model: CausalLM) -> None:
    context = model.config.max_position_embeddings
    prompts = prompts_of([context - 3, context - 1, 4])
    rows = complete(model, prompts, Sampling(temperature=0, max_new_tokens=50), set())
    assert [len(row) for row in rows] == [3, 1, 50]
    assert rows[0] == complete(model, prompts[:1], GREEDY, set())[0]
    for length in (context, context + 5):
        with pytest.raises(TooLong, match=f"{length} tokens.*context of {context}; shorten it"):
            complete(model, prompts_of([length]), GREEDY)


def test_no_prompts(complete, model: CausalLM) -> None:
    assert complete(model, [], GREEDY, set()) == []


def test_stop_at_once(complete, by, model: CausalLM) -> None:
    prompts = prompts_of([4, 9])
    first = {row[0] for row in complete(model, prompts, GREEDY, set())}
    assert complete(model, prompts, GREEDY, first) == [[], []]


def test_seed_decides(complete, by, model: CausalLM) -> None:
    prompts = prompts_of(LENGTHS)
    runs = [complete(model, prompts, Sampling(temperature=2, seed=seed), set()) for seed in (7, 7, 8)]
    assert runs[0] == runs[1] != runs[2]


def test_bfloat16(complete, by, model: CausalLM) -> None:
    """By the kernel, weights that are stored so give what float32 gives with the same numbers, bit by bit."""
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    prompts = prompts_of(LENGTHS)
    rows = complete(rounded, prompts, GREEDY, set())
    assert [len(row) for row in rows] == [20] * len(prompts)
    exact = complete(rounded.float() if by == "kernel" else model, prompts, GREEDY, set())
    same = sum(a[0] == b[0] for a, b in zip(rows, exact, strict=True))
    assert rows == exact if by == "kernel" else same >= len(prompts) - 2


def test_diverged_model_is_named(complete, by, model: CausalLM) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"diverged.*earlier checkpoint"):
        complete(broken, [[1, 2]], GREEDY, set())


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_seeded_answer_does_not_depend_on_its_neighbours(complete, by, model: CausalLM, penalty: float) -> None:
    """Alone, in any order, beside any others, whenever these end, and whatever fits into a batch."""
    prompts = prompts_of(LENGTHS)
    stop_ids = busy_stop_ids(complete, model, prompts)
    sampling = Sampling(temperature=1.5, top_p=0.95, seed=11, max_new_tokens=20, repetition_penalty=penalty)
    together = complete(model, prompts, sampling, stop_ids)
    assert [complete(model, [prompt], sampling, stop_ids)[0] for prompt in prompts] == together
    assert complete(model, prompts[::-1], sampling, stop_ids)[::-1] == together
    assert complete(model, prompts, sampling, stop_ids, tokens=256) == together
    assert len({tuple(row) for row in together}) > 5 and len({len(row) for row in together}) > 2
