"""One training step (forward, backward, clip, AdamW) of a dense model: ours against transformers' Llama.

    python bench/train_step.py [--rounds 6] [--steps 4] [--recipe recipes/….toml] [--rows 8] [--length 512]
        [--micro-batch 0] [--activation-checkpointing] [--device cpu|cuda] [--contestants ours,peer_eager,…]

Ends with one line of JSON: tokens/s of ours and of the peers, ratios, the share of the measured bf16 matrix-product
peak, memory.
"""

from functools import partial

from contest import SHAPE, ours, peer, run, summary

CONTESTANTS = {
    "ours": ("Mengya: bf16, compiled layers, own kernels", ours),
    "peer_eager": ("transformers: fp32, eager", partial(peer, mixed=False, compiled=False)),
    "peer_bf16": ("transformers: bf16 autocast, fused AdamW", partial(peer, mixed=True, compiled=False)),
    "peer_best": ("transformers: bf16 autocast, compiled, fused AdamW", partial(peer, mixed=True, compiled=True)),
}

if __name__ == "__main__":
    run(__doc__, CONTESTANTS, {"ours": SHAPE}, summary)
