"""Batched generation: against transformers' `generate`, against one prompt at a time, and at its edges."""

import random

import pytest
import torch

from mengya.errors import UserError
from mengya.infer.request import Sampling
from mengya.infer.session import generate
from mengya.model.native.transformer import CausalLM

GREEDY = Sampling(temperature=0, max_new_tokens=20)


def prompts_of(lengths: list[int], vocab_size: int = 300, seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(vocab_size) for _ in range(length)] for length in lengths]


LENGTHS = [5, 1, 30, 17, 17, 2, 60, 8, 9]


def busy_stop_ids(model: CausalLM, prompts: list[list[int]]) -> set[int]:
    """Stop tokens that end the rows at different steps, so that the batch shrinks again and again."""
    free = generate(model, prompts, GREEDY, set())
    return {row[3 + 2 * i] for i, row in enumerate(free[:6])}


@pytest.mark.parametrize("family", ["model", "qwen"])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_as_transformers(family: str, penalty: float, request: pytest.FixtureRequest, tmp_path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra")
    model = request.getfixturevalue(family)
    model.save(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompts = prompts_of(LENGTHS)
    stop_ids = busy_stop_ids(model, prompts)
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
    assert generate(model, prompts, sampling, stop_ids) == expected
    assert len({len(row) for row in expected}) > 2, "the rows should end at different steps"


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
def test_batch_equals_single(model: CausalLM, batch_tokens: int, penalty: float) -> None:
    prompts = prompts_of(LENGTHS * 2)
    stop_ids = busy_stop_ids(model, prompts)
    sampling = Sampling(temperature=0, max_new_tokens=20, repetition_penalty=penalty)
    alone = [generate(model, [prompt], sampling, stop_ids)[0] for prompt in prompts]
    assert generate(model, prompts, sampling, stop_ids, batch_tokens) == alone


def test_cached_equals_full_forward(model: CausalLM) -> None:
    prompts = prompts_of(LENGTHS)
    for prompt, row in zip(prompts, generate(model, prompts, GREEDY, set()), strict=True):
        ids = list(prompt)
        for token in row:
            assert model(torch.tensor([ids]))[0, -1].argmax() == token
            ids.append(token)


def test_ends_at_the_context(model: CausalLM) -> None:
    context = model.config.max_position_embeddings
    prompts = prompts_of([context - 3, context - 1, context, context + 5, 4])
    rows = generate(model, prompts, Sampling(temperature=0, max_new_tokens=50), set())
    assert [len(row) for row in rows] == [3, 1, 0, 0, 50]
    assert rows[0] == generate(model, prompts[:1], GREEDY, set())[0]


def test_no_prompts(model: CausalLM) -> None:
    assert generate(model, [], GREEDY, set()) == []


def test_stop_at_once(model: CausalLM) -> None:
    prompts = prompts_of([4, 9])
    first = {row[0] for row in generate(model, prompts, GREEDY, set())}
    assert generate(model, prompts, GREEDY, first) == [[], []]


def test_seed_decides(model: CausalLM) -> None:
    prompts = prompts_of(LENGTHS)
    runs = [generate(model, prompts, Sampling(temperature=2, seed=seed), set()) for seed in (7, 7, 8)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("cast", [True, False])
def test_bfloat16(tiny_model, cast: bool) -> None:
    """Weights in bfloat16, and float32 weights with bfloat16 activations: both generate alike, almost."""
    model = tiny_model()
    if cast:
        model.to(torch.bfloat16)
    else:
        model.model.compute_dtype = torch.bfloat16
    prompts = prompts_of(LENGTHS)
    rows = generate(model, prompts, GREEDY, set())
    assert [len(row) for row in rows] == [20] * len(prompts)
    exact = generate(tiny_model(), prompts, GREEDY, set())
    same = sum(a[0] == b[0] for a, b in zip(rows, exact, strict=True))
    assert same >= len(prompts) - 2


def test_diverged_model_is_named(tiny_model) -> None:
    broken = tiny_model()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"diverged.*earlier checkpoint"):
        generate(broken, [[1, 2]], GREEDY, set())


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_seeded_answer_does_not_depend_on_its_neighbours(model: CausalLM, penalty: float) -> None:
    """Alone, in any order, beside any others, whenever these end, and whatever fits into a batch."""
    prompts = prompts_of(LENGTHS)
    stop_ids = busy_stop_ids(model, prompts)
    sampling = Sampling(temperature=1.5, top_p=0.95, seed=11, max_new_tokens=20, repetition_penalty=penalty)
    together = generate(model, prompts, sampling, stop_ids)
    assert [generate(model, [prompt], sampling, stop_ids)[0] for prompt in prompts] == together
    assert generate(model, prompts[::-1], sampling, stop_ids)[::-1] == together
    assert generate(model, prompts, sampling, stop_ids, batch_tokens=100) == together
    assert len({tuple(row) for row in together}) > 5 and len({len(row) for row in together}) > 2
