"""What the tests of generation share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mengya.model.language_model import LanguageModel, Span, Steps


def in_pieces(steps: Steps, rows: Sequence[Sequence[int]], plan: Sequence[Sequence[int]]) -> list[Tensor]:
    """(T, V) logits of each row, computed in steps: each step of the plan says how many tokens of each row it takes."""
    size = -(-max(map(len, rows)) // steps.block)
    tables = [list(range(number * size, (number + 1) * size)) for number in range(len(rows))]
    found: list[list[Tensor]] = [[] for _ in rows]
    done = [0] * len(rows)
    for counts in plan:
        spans = [
            Span(number, row[done[number] : done[number] + count], done[number], tables[number], count)
            for number, (row, count) in enumerate(zip(rows, counts, strict=True))
            if count
        ]
        parts = steps.run(spans).split([span.outputs for span in spans])
        for span, part in zip(spans, parts, strict=True):
            found[span.sequence].append(part.clone())
            done[span.sequence] += len(span.tokens)
    assert done == list(map(len, rows)), "the plan takes in everything"
    return [torch.cat(parts) for parts in found]


def check_greedy_decoding(model: LanguageModel, peer: torch.nn.Module, prompt: Tensor, count: int = 20) -> None:
    """So many tokens after a prompt of one row, by our steps and by transformers' `generate`, are the same."""
    with torch.no_grad():
        expected = peer.generate(prompt, max_new_tokens=count, do_sample=False, pad_token_id=0)[0, prompt.shape[1] :]
    steps, ids, got = model.steps(64), prompt[0].tolist(), []
    blocks, start = range(steps.blocks), 0
    while len(got) < count:
        logits = steps.run([Span(0, ids[start:], start, blocks, 1)])
        start = len(ids)
        got.append(int(logits[0].argmax()))
        ids.append(got[-1])
    assert got == expected.tolist()
