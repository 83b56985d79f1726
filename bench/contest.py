"""What the speed benchmarks share: contestants that train the same shape on the same random tokens, each in turn.

Every contestant runs in a process of its own, several rounds; the best median of its rounds counts, so that a busy
moment of the machine hits nobody twice.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

WARMUP = 3
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
"""The 26M dense model."""


@dataclass(frozen=True)
class Task:
    shape: dict
    """ModelConfig's fields."""
    rows: int
    length: int
    steps: int
    micro_batch: int
    """Rows that ours takes at once; peers take all."""
    activation_checkpointing: bool
    device: str

    @property
    def tokens(self) -> int:
        return self.rows * self.length


Contestant = Callable[[Task], Iterator[float]]
"""Trains, and yields each step's loss."""


def random_tokens(task: Task, step: int):
    """(rows, length + 1), the same for every contestant."""
    import torch

    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, task.shape["vocab_size"], (task.rows, task.length + 1), generator=generator)


def ours(task: Task) -> Iterator[float]:
    """The project's own loop."""
    import torch

    from mengya.data.batch import Batch
    from mengya.model.config import ModelConfig
    from mengya.model.transformer import CausalLM
    from mengya.train.loop import Guard, fit
    from mengya.train.objectives import language_modeling
    from mengya.train.training import TrainingConfig, make_engine, prepare_model

    model = CausalLM(ModelConfig(**task.shape))
    model.initialize(torch.Generator().manual_seed(0))
    settings = TrainingConfig(
        seq_len=task.length,
        batch_tokens=task.tokens,
        micro_batch=task.micro_batch,
        activation_checkpointing=task.activation_checkpointing,
    )
    model, compiled = prepare_model(model, settings)
    engine = make_engine(model, language_modeling(compiled), settings)

    def batch(ids: torch.Tensor) -> Batch:
        rows = len(ids)
        return Batch(
            input_ids=ids[:, :-1],
            labels=ids[:, 1:],
            position_ids=torch.arange(task.length).expand(rows, task.length),
            starts=torch.zeros(rows, task.length, dtype=torch.int32),
            sequence_ids=torch.arange(rows)[:, None].expand(rows, task.length),
            sequences=rows,
            count=rows * task.length,
        )

    def source(step: int) -> list[Batch]:
        return [batch(ids) for ids in random_tokens(task, step).split(task.micro_batch or task.rows)]

    for _, metrics in fit(engine, lambda _: 1.0, source, range(task.steps + WARMUP), 1.0, Guard()):
        yield metrics["loss"]


def peer(task: Task, mixed: bool, compiled: bool, experts: str = "eager") -> Iterator[float]:
    """transformers' model of the same shape in a plain loop; `experts`: its implementation of a mixture's experts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from mengya.model.config import ModelConfig, to_hf

    torch.manual_seed(0)
    config = AutoConfig.for_model(**to_hf(ModelConfig(**task.shape), "float32", None, None))
    config.use_cache = False
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train().to(task.device)
    if task.shape.get("num_experts"):
        model.set_experts_implementation(experts)
    if task.activation_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=mixed)
    forward = torch.compile(model) if compiled else model
    for step in range(task.steps + WARMUP):
        ids = random_tokens(task, step)[:, :-1].to(task.device)
        with torch.autocast(task.device, torch.bfloat16, enabled=mixed):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield float(loss)


def compete(contestant: Contestant, task: Task) -> dict:
    """Run one contestant in this process."""
    from mengya import runtime

    times, losses = [], []
    last = time.perf_counter()
    for loss in contestant(task):
        runtime.synchronize(task.device)
        now = time.perf_counter()
        times.append(now - last)
        losses.append(loss)
        last = now
    return {
        "tokens_per_second": task.tokens / statistics.median(times[WARMUP:]),
        "first_step_seconds": times[0],
        "loss": losses[-1],
        "peak_memory_bytes": device_memory(task.device),
    }


def device_memory(device: str) -> int:
    """Most memory held: of the process on a CPU (interpreter and libraries included), of the tensors on a GPU."""
    import torch

    from mengya import runtime

    return torch.cuda.max_memory_allocated() if device == "cuda" else runtime.peak_memory()


def measured_peak(device: str) -> float:
    """bf16 matrix-product peak in FLOP/s, in a fresh process."""
    code = f"import torch; from mengya.runtime import peak_flops; print(peak_flops(torch.bfloat16, {device!r}))"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def parser(description: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description.split("\n")[0])
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--steps", type=int, default=8, help="measured steps a round")
    found.add_argument("--recipe", type=Path, help="take the shape of its [pretrain.model] instead of the built-in one")
    found.add_argument("--rows", type=int, default=8)
    found.add_argument("--length", type=int, default=512)
    found.add_argument("--micro-batch", type=int, default=0, help="rows that ours takes at once; 0: all")
    found.add_argument("--activation-checkpointing", action="store_true", help="for all contestants")
    found.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    found.add_argument("--contestants", help="comma-separated; default: all")
    found.add_argument("--one", help=argparse.SUPPRESS)
    return found


def shape_of(recipe: Path) -> dict:
    """The model of a recipe's pretrain stage; a vocabulary that its tokenizer decides is taken as 6,400."""
    import tomllib

    shape = tomllib.loads(recipe.read_text(encoding="utf-8"))["pretrain"]["model"]
    return {"vocab_size": 6400} | shape


def run(
    description: str, contestants: dict[str, tuple[str, Contestant]], shapes: dict[str, dict], summarize: Callable
) -> None:
    """The command line of a benchmark.

    contestants: name -> text and function. shapes: its shape where it is not that of "ours". `summarize(results, peak,
    task)` gives what the last line shows, as JSON.
    """
    arguments = parser(description).parse_args()
    from mengya.runtime import pick_device

    device = pick_device() if arguments.device == "auto" else arguments.device
    shape = shape_of(arguments.recipe) if arguments.recipe else shapes["ours"]
    shape["max_position_embeddings"] = max(shape["max_position_embeddings"], arguments.length)
    task = Task(
        shape, arguments.rows, arguments.length, arguments.steps, arguments.micro_batch,
        arguments.activation_checkpointing, device,
    )  # fmt: skip
    if arguments.one:
        own = replace(task, shape=shapes.get(arguments.one, shape))
        print(json.dumps(compete(contestants[arguments.one][1], own)))
        return
    names = arguments.contestants.split(",") if arguments.contestants else list(contestants)
    results: dict[str, list[dict]] = {name: [] for name in names}
    peaks = []
    for number in range(arguments.rounds):
        peaks.append(measured_peak(device))
        for name in names:
            row = in_own_process(name)
            results[name].append(row)
            print(
                f"round {number + 1} {contestants[name][0]}: {row['tokens_per_second']:.0f} tokens/s, first step "
                f"{row['first_step_seconds']:.0f} s, {row['peak_memory_bytes'] / 1e9:.2f} GB, loss {row['loss']:.3f}",
                flush=True,
            )
    print(json.dumps(summarize(results, max(peaks), task)))


def in_own_process(name: str) -> dict:
    """The result of one contestant, run by this same command."""
    command = [sys.executable, *sys.argv, "--one", name]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{name} failed:\n{ended.stderr}")
    return json.loads(ended.stdout.strip().splitlines()[-1])


def summary(results: dict[str, list[dict]], peak: float, task: Task) -> dict:
    """Ours against the strongest of the peers (names that begin with "peer")."""
    from mengya.model.config import ModelConfig
    from mengya.model.transformer import flops_per_token

    best = {name: max(row["tokens_per_second"] for row in rows) for name, rows in results.items()}
    memory = {name: min(row["peak_memory_bytes"] for row in rows) for name, rows in results.items()}
    flops = best["ours"] * flops_per_token(ModelConfig(**task.shape), task.length / 2)
    peers = {name: value for name, value in best.items() if name.startswith("peer")}
    strongest = max(peers, key=lambda name: peers[name])
    return {
        "ours": round(best["ours"], 1),
        "peer": round(peers[strongest], 1),
        "ratio": round(best["ours"] / peers[strongest], 3),
        "ratios": {name: round(best["ours"] / value, 3) for name, value in best.items() if name != "ours"},
        "tokens_per_second": {name: round(value, 1) for name, value in best.items()},
        "tflops": round(flops / 1e12, 3),
        "peak_tflops": round(peak / 1e12, 3),
        "peak_share": round(flops / peak, 3),
        "memory_bytes": memory,
        "memory_ratio": round(memory["ours"] / memory[strongest], 3),
        "memory_ratios": {name: round(memory["ours"] / memory[name], 3) for name in memory if name != "ours"},
    }
