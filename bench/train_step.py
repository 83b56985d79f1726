"""One training step (forward, backward, clip, AdamW) of a dense model: ours against transformers' Llama.

    python bench/train_step.py [--minutes 4.5] [--recipe recipes/….toml] [--rows 8] [--length 512]
        [--micro-batch 0] [--activation-checkpointing] [--device cpu|cuda] [--contestants ours,peer_eager,…]

Ends with one line of JSON: tokens/s of ours and of the peers, ratios, the share of the measured peak of matrix
products, memory.
"""

from functools import partial

from contest import SHAPE, Contestants, ours, peer, run, summary


def entrants(bfloat16: bool) -> Contestants:
    kind = "bf16 autocast" if bfloat16 else "fp32"
    found = {
        "ours": ("Mengya: compiled layers, own kernels", ours),
        "peer_eager": ("transformers: fp32, eager, fused AdamW", partial(peer, mixed=False, compiled=False)),
        "peer_compiled": (f"transformers: {kind}, compiled, fused AdamW", partial(peer, mixed=bfloat16, compiled=True)),
    }
    if bfloat16:
        found["peer_bf16"] = ("transformers: bf16 autocast, fused AdamW", partial(peer, mixed=True, compiled=False))
    return found


if __name__ == "__main__":
    run(__doc__, entrants, {"ours": SHAPE}, summary)
