"""One training step (forward, backward, clip, AdamW) of a dense model: ours against transformers' Llama.

Each contestant runs in a process of its own, in turn, several rounds, on the same shapes and the same random tokens;
the best median of a contestant's rounds counts, so that a busy moment of the machine hits nobody twice.

    python bench/train_step.py [--rounds 3] [--steps 8] [--contestants ours,peer_eager,…]

Ends with one line of JSON: tokens/s of ours and of the peers, ratios, the share of the measured bf16 matrix-product
peak, memory.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

SHAPE = dict(
    vocab_size=6400,
    hidden_size=512,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    intermediate_size=1408,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)
ROWS, LENGTH = 8, 512
CONTESTANTS = {
    "ours": "Mengya: bf16, compiled layers, own attention kernel",
    "peer_eager": "transformers Llama: fp32, eager",
    "peer_bf16": "transformers Llama: bf16 autocast, fused AdamW",
    "peer_best": "transformers Llama: bf16 autocast, compiled, fused AdamW",
}


def ours(steps: int):
    """The project's own loop; yields after every step."""
    import torch

    from mengya.data.batch import Batch
    from mengya.model.config import ModelConfig
    from mengya.model.transformer import CausalLM
    from mengya.train.loop import Guard, fit
    from mengya.train.objectives import language_modeling
    from mengya.train.training import Optim, TrainingConfig, make_engine, prepare_model

    model = CausalLM(ModelConfig(**SHAPE))
    model.initialize(torch.Generator().manual_seed(0))
    settings = TrainingConfig(seq_len=LENGTH, batch_tokens=ROWS * LENGTH, optim=Optim(lr=1e-3))
    model, compiled = prepare_model(model, settings)
    engine = make_engine(model, language_modeling(compiled), settings)

    def source(step: int) -> list[Batch]:
        ids = tokens(step)
        return [
            Batch(
                input_ids=ids[:, :-1],
                labels=ids[:, 1:],
                position_ids=torch.arange(LENGTH).expand(ROWS, LENGTH),
                starts=torch.zeros(ROWS, LENGTH, dtype=torch.int32),
                sequence_ids=torch.arange(ROWS)[:, None].expand(ROWS, LENGTH),
                sequences=ROWS,
                count=ROWS * LENGTH,
            )
        ]

    for _, metrics in fit(engine, lambda _: 1.0, source, range(steps), 1.0, Guard()):
        yield metrics["loss"]


def peer(steps: int, mixed: bool, compiled: bool):
    """transformers' Llama in a plain loop."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=mixed)
    forward = torch.compile(model) if compiled else model
    for step in range(steps):
        ids = tokens(step)[:, :-1]
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield float(loss)


def tokens(step: int):
    import torch

    return torch.randint(0, SHAPE["vocab_size"], (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))


def contest(name: str, steps: int) -> None:
    """Run one contestant in this process and print its figures."""
    from mengya import runtime

    warmup = 3
    runs = {
        "ours": lambda: ours(steps + warmup),
        "peer_eager": lambda: peer(steps + warmup, mixed=False, compiled=False),
        "peer_bf16": lambda: peer(steps + warmup, mixed=True, compiled=False),
        "peer_best": lambda: peer(steps + warmup, mixed=True, compiled=True),
    }
    times, losses = [], []
    last = begin = time.perf_counter()
    for loss in runs[name]():
        now = time.perf_counter()
        times.append(now - last)
        losses.append(loss)
        last = now
    median = statistics.median(times[warmup:])
    print(
        json.dumps(
            {
                "tokens_per_second": ROWS * LENGTH / median,
                "first_step_seconds": times[0],
                "loss": losses[-1],
                "peak_memory_bytes": runtime.peak_memory(),
                "seconds": time.perf_counter() - begin,
            }
        )
    )


def measured_peak() -> float:
    """bf16 matrix-product peak in FLOP/s, in a fresh process."""
    code = "import torch; from mengya.runtime import peak_flops; print(peak_flops(torch.bfloat16, 'cpu'))"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return contest(arguments.one, arguments.steps)
    names = arguments.contestants.split(",")
    results: dict[str, list[dict]] = {name: [] for name in names}
    peaks = []
    for number in range(arguments.rounds):
        peaks.append(measured_peak())
        for name in names:
            command = [sys.executable, __file__, "--one", name, "--steps", str(arguments.steps)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            results[name].append(json.loads(output.strip().splitlines()[-1]))
            row = results[name][-1]
            print(
                f"round {number + 1} {CONTESTANTS[name]}: {row['tokens_per_second']:.0f} tokens/s, first step "
                f"{row['first_step_seconds']:.0f} s, {row['peak_memory_bytes'] / 1e9:.2f} GB, loss {row['loss']:.3f}",
                flush=True,
            )
    best = {name: max(row["tokens_per_second"] for row in rows) for name, rows in results.items()}
    memory = {name: min(row["peak_memory_bytes"] for row in rows) for name, rows in results.items()}
    print(json.dumps(summary(best, memory, max(peaks))))


def summary(best: dict[str, float], memory: dict[str, int], peak: float) -> dict:
    from mengya.model.config import ModelConfig
    from mengya.model.transformer import flops_per_token

    flops = best["ours"] * flops_per_token(ModelConfig(**SHAPE), LENGTH / 2)
    peers = {name: value for name, value in best.items() if name != "ours"}
    strongest = max(peers, key=lambda name: peers[name])
    return {
        "ours": round(best["ours"], 1),
        "peer": round(peers[strongest], 1),
        "ratio": round(best["ours"] / peers[strongest], 3),
        "ratios": {name: round(best["ours"] / value, 3) for name, value in peers.items()},
        "tokens_per_second": {name: round(value, 1) for name, value in best.items()},
        "tflops": round(flops / 1e12, 3),
        "peak_tflops": round(peak / 1e12, 3),
        "peak_share": round(flops / peak, 3),
        "memory_bytes": memory,
        "memory_ratio": round(memory["ours"] / memory[strongest], 3),
    }


if __name__ == "__main__":
    main()
