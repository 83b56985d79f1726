"""One training step of a mixture of experts: ours against our dense model of equal active parameters, and against
transformers' implementations of the same mixture.

The built-in shape is the published 1.3B mixture's in small: 15 routed experts, 4 for each token, 2 shared ones fused,
the first layer dense; 6 experts' width is the dense model's. `batched_mm`, transformers' third implementation, copies
an expert's weights for every token and did not end six steps in two minutes; it is left out.

    python bench/moe_step.py [--minutes 4.5] [--rows 8] [--length 512] [--device cpu|cuda] [--contestants …]

Ends with one line of JSON; `dense_ratio` is tokens/s of the mixture over those of the dense model.
"""

from functools import partial

from contest import SHAPE, Contestants, Task, ours, peer, run, summary

DENSE = SHAPE | dict(intermediate_size=6 * 256)
MIXTURE = DENSE | dict(
    num_experts=15, num_experts_per_tok=4, moe_intermediate_size=256, n_shared_experts=2, first_k_dense_replace=1
)


def entrants(bfloat16: bool) -> Contestants:
    kind, grouped = "bf16 autocast" if bfloat16 else "fp32", partial(peer, mixed=bfloat16, experts="grouped_mm")
    return {
        "ours": ("Mengya: mixture of experts", ours),
        "dense": ("Mengya: dense, the same active parameters", ours),
        "peer_eager": ("transformers: fp32, eager experts, fused AdamW", partial(peer, mixed=False, compiled=False)),
        "peer_grouped": (f"transformers: {kind}, grouped_mm, fused AdamW", partial(grouped, compiled=False)),
        "peer_compiled": (f"transformers: {kind}, grouped_mm, compiled, fused AdamW", partial(grouped, compiled=True)),
    }


def with_dense(rounds: list[dict[str, dict]], task: Task) -> dict:
    found = summary(rounds, task)
    return found | {"dense_ratio": found["ratios"].get("dense")}


if __name__ == "__main__":
    run(__doc__, entrants, {"ours": MIXTURE, "dense": DENSE}, with_dense)
