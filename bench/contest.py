"""What the speed benchmarks share: contestants that train the same shape on the same random tokens, each in turn.

Every contestant has a process of its own, and all take turns: a round is a few steps of each and a measurement of the
machine's matrix products, begun by another each time. Ratios are formed within a round, and the median of the rounds
counts, so that a machine that slows down for a while slows down everybody. All hold their memory at once.

There are as many rounds, of as many steps, as fit into the minutes given. Peers in bfloat16 take part where the
hardware computes it; emulated, they are slower than in float32 and say nothing. The peak is that of the type in use.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

STEPS, ROUNDS = 4, 5
"""At most so many steps in a turn, fewer if they leave no time for so many rounds."""
ENDLESS = range(10**9)
ANSWER = "answer: "
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
    micro_batch: int
    """Rows that ours takes at once; peers take all."""
    activation_checkpointing: bool
    device: str

    @property
    def tokens(self) -> int:
        return self.rows * self.length


Contestant = Callable[[Task], Iterator[float]]
"""Trains, and yields each step's loss."""
Contestants = dict[str, tuple[str, Contestant]]
"""By name: a text and the function. Peers' names begin with "peer"."""


def random_tokens(task: Task, step: int):
    """(rows, length + 1), the same for every contestant."""
    import torch

    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, task.shape["vocab_size"], (task.rows, task.length + 1), generator=generator)


def ours(task: Task) -> Iterator[float]:
    """The project's own loop."""
    import torch

    from mengya.batch import Batch, Source
    from mengya.model.native.config import ModelConfig
    from mengya.model.native.transformer import CausalLM
    from mengya.train.loop import Guard, fit
    from mengya.train.objectives import language_modeling
    from mengya.train.settings import TrainingConfig, engine_for, prepare_model

    model = CausalLM(ModelConfig(**task.shape))
    model.initialize(torch.Generator().manual_seed(0))
    settings = TrainingConfig(
        seq_len=task.length,
        batch_tokens=task.tokens,
        micro_batch=task.micro_batch,
        activation_checkpointing=task.activation_checkpointing,
    )
    engine = engine_for(prepare_model(model, settings), language_modeling(), settings)

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

    class Random(Source):
        def __call__(self, step: int) -> list[Batch]:
            return [batch(ids) for ids in random_tokens(task, step).split(settings.rows_at_once(1))]

    for _, metrics in fit(engine, lambda _: 1.0, Random(), ENDLESS, 1.0, Guard()):
        yield metrics["loss"]


def peer(task: Task, mixed: bool, compiled: bool, experts: str = "eager") -> Iterator[float]:
    """transformers' model of the same shape in a plain loop, in bfloat16 by autocast if `mixed`, and AdamW in its fused
    form; `experts`: its implementation of a mixture's experts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from mengya.model.native.config import ModelConfig, to_hf

    torch.manual_seed(0)
    config = AutoConfig.for_model(**to_hf(ModelConfig(**task.shape)))
    config.use_cache = False
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train().to(task.device)
    if task.shape.get("num_experts"):
        model.set_experts_implementation(experts)
    if task.activation_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model
    for step in ENDLESS:
        ids = random_tokens(task, step)[:, :-1].to(task.device)
        with torch.autocast(task.device, torch.bfloat16, enabled=mixed):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield float(loss)


def compete(contestant: Contestant, task: Task) -> None:
    """Train in this process: so many steps as every line read says, answered by a line of JSON."""
    from mengya import runtime

    def step() -> float:
        nonlocal loss
        begin = time.perf_counter()
        loss = next(losses)
        runtime.synchronize(task.device)
        return time.perf_counter() - begin

    peak, losses, loss = runtime.PeakMemory(), contestant(task), 0.0
    answer(first_step_seconds=step())
    for line in sys.stdin:
        times = [step() for _ in range(int(line))]
        answer(
            tokens_per_second=task.tokens / statistics.median(times),
            loss=loss,
            peak_memory_bytes=peak.device() or peak.host(),  # on a CPU with interpreter and libraries
        )


def measure_peak(task: Task) -> None:
    """As compete; the answer is the speed of matrix products in FLOP/s, of the type that is trained in."""
    from mengya.runtime import peak_flops, pick_dtype

    answer()
    for _ in sys.stdin:
        answer(flops_per_second=peak_flops(pick_dtype("auto", task.device), task.device))


def features() -> list[str]:
    """Which of the instructions that matter here the processor has, without those that PyTorch was told to leave out
    (ATEN_CPU_CAPABILITY), or the name of the GPU."""
    import torch

    from mengya import processor

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name()]
    names = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
    kept = names[:1] if torch.backends.cpu.get_cpu_capability() == "AVX2" else names
    return [name for name in kept if name in processor.features()] or [torch.backends.cpu.get_cpu_capability()]


def answer(**values: float) -> None:
    """One line for the benchmark, marked: libraries print, too."""
    print(ANSWER + json.dumps(values), flush=True)


def parser(description: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description.split("\n")[0])
    found.add_argument("--minutes", type=float, default=4.5, help="of everything, starting and compiling included")
    found.add_argument("--recipe", type=Path, help="take the shape of its [pretrain.model] instead of the built-in one")
    found.add_argument("--rows", type=int, default=8)
    found.add_argument("--length", type=int, default=512)
    found.add_argument(
        "--micro-batch", type=int, default=0, help="rows that ours takes at once; 0: as many as it chooses"
    )
    found.add_argument("--activation-checkpointing", action="store_true", help="for all contestants")
    found.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    found.add_argument("--contestants", help="comma-separated; default: all")
    found.add_argument("--one", help=argparse.SUPPRESS)
    return found


def shape_of(recipe: Path) -> dict:
    """The model of a recipe's pretrain stage; a vocabulary that its tokenizer decides is taken as 6,400."""
    from mengya.toml_tables import read_tables

    shape = read_tables(recipe)["pretrain"]["model"]
    return {"vocab_size": 6400} | shape


def run(
    description: str, entrants: Callable[[bool], Contestants], shapes: dict[str, dict], summarize: Callable
) -> None:
    """The command line of a benchmark.

    entrants: given whether the hardware computes bfloat16, those who take part. shapes: a contestant's shape where it
    is not that of "ours". `summarize(rounds, task)` gives what the last line shows, as JSON.
    """
    arguments, begin = parser(description).parse_args(), time.monotonic()
    from mengya.runtime import is_bfloat16_faster, pick_device

    device = pick_device() if arguments.device == "auto" else arguments.device
    contestants = entrants(is_bfloat16_faster(device))
    shape = shape_of(arguments.recipe) if arguments.recipe else shapes["ours"]
    task = Task(
        shape, arguments.rows, arguments.length, arguments.micro_batch, arguments.activation_checkpointing, device
    )
    if arguments.one == "peak":
        return measure_peak(task)
    if arguments.one:
        own = shapes.get(arguments.one, shape) if arguments.one != "ours" else shape
        own = own | {"max_position_embeddings": max(own["max_position_embeddings"], arguments.length)}
        return compete(contestants[arguments.one][1], replace(task, shape=own))
    names = arguments.contestants.split(",") if arguments.contestants else list(contestants)
    if unknown := set(names) - set(contestants):
        raise SystemExit(f"--contestants: {', '.join(unknown)} cannot take part; there are {', '.join(contestants)}")
    if "ours" not in names or not any(name.startswith("peer") for name in names):
        raise SystemExit("--contestants must name ours and at least one peer")
    if arguments.recipe and (fixed := set(names) & set(shapes) - {"ours"}):
        raise SystemExit(f"--recipe changes the shape of all but {', '.join(fixed)}; leave it out of --contestants")
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name)) for name in [*names, "peak"]}
        for name, worker in workers.items():  # all compile at the same time
            first = worker.answer().get("first_step_seconds")
            if first is not None:
                print(f"{contestants[name][0]}: ready, the first step took {first:.0f} s beside the others", flush=True)
        rounds = take_turns(workers, begin + 60 * arguments.minutes)
    print(json.dumps(summarize(rounds, task) | {"rounds": len(rounds), "features": features()}))


def take_turns(workers: "dict[str, Worker]", end: float) -> list[dict[str, dict]]:
    """Rounds until the time `end`, at least one: the answers of all, by name."""
    begin = time.monotonic()
    for worker in workers.values():  # a round that does not count: its step is everybody's second
        worker.turn(1)
    step = time.monotonic() - begin
    steps = max(1, min(STEPS, int((end - time.monotonic()) / (ROUNDS * step))))
    rounds: list[dict[str, dict]] = []
    longest = 0.0
    while not rounds or time.monotonic() + longest < end:
        begin, turn = time.monotonic(), len(rounds) % len(workers)
        order = [*workers][turn:] + [*workers][:turn]
        rounds.append({name: workers[name].turn(steps) for name in order})
        longest = max(longest, time.monotonic() - begin)
        speeds = (f"{n} {rounds[-1][n]['tokens_per_second']:.0f}" for n in workers if n != "peak")
        print(f"round {len(rounds)}, {steps} steps, tokens/s: {', '.join(speeds)}", flush=True)
    return rounds


class Worker:
    """A contestant in a process of its own, started by this same command; its first answer comes when it is warm."""

    def __init__(self, name: str, *more: str):
        command = [sys.executable, *sys.argv, "--one", name, *more]
        self._name, self._log = name, tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def turn(self, steps: int) -> dict:
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict:
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        self._log.seek(0)
        raise SystemExit(f"{self._name} failed:\n{self._log.read().decode(errors='replace')}")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()


def summary(rounds: list[dict[str, dict]], task: Task) -> dict:
    """Ours against the strongest of the peers (names that begin with "peer"), medians over the rounds."""
    import torch

    from mengya.model.native.config import ModelConfig
    from mengya.model.native.transformer import CausalLM

    def median(value: Callable[[dict[str, dict]], float]) -> float:
        return statistics.median(map(value, rounds))

    names = sorted(set(rounds[0]) - {"peak"})
    speed = {name: median(lambda r, n=name: r[n]["tokens_per_second"]) for name in names}
    ratios = {
        name: median(lambda r, n=name: r["ours"]["tokens_per_second"] / r[n]["tokens_per_second"])
        for name in names if name != "ours"
    }  # fmt: skip
    memory = {name: rounds[-1][name]["peak_memory_bytes"] for name in names}
    with torch.device("meta"):
        flops = CausalLM(ModelConfig(**task.shape)).flops_per_token(task.length / 2)
    share = median(lambda r: r["ours"]["tokens_per_second"] * flops / r["peak"]["flops_per_second"])
    strongest = min((name for name in ratios if name.startswith("peer")), key=lambda name: ratios[name])
    return {
        "ours": round(speed["ours"], 1),
        "peer": round(speed[strongest], 1),
        "ratio": round(ratios[strongest], 3),
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "tokens_per_second": {name: round(value, 1) for name, value in speed.items()},
        "tflops": round(speed["ours"] * flops / 1e12, 3),
        "peak_tflops": round(median(lambda r: r["peak"]["flops_per_second"]) / 1e12, 3),
        "peak_share": round(share, 3),
        "memory_bytes": memory,
        "memory_ratio": round(memory["ours"] / memory[strongest], 3),
        "memory_ratios": {name: round(memory["ours"] / memory[name], 3) for name in memory if name != "ours"},
    }
