"""Kill runs of pretrain, sft and dpo with SIGKILL at random moments until they are done, and compare every step's
figures and every weight with an undisturbed run.

    python bench/survival.py [--kills 50] [--engines single,ddp,fsdp,deepspeed] [--compile] [--seed 0]

A run in one process is killed and the same command given again. A run of two processes loses one of them, which
torchrun has to mend by itself, or all of them with torchrun, after which the same command is given again. The kills are
shared out among the engines. The last line is JSON: the kills, whether everything is identical, and how many steps are
missing, doubled or different.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

STAGES = ("pretrain", "sft", "dpo")
STEPS = 60
_CLOCK = {"tokens_per_second"}  # the one figure of a row that two equal runs do not share


class Process(Protocol):
    """What is needed of subprocess.Popen."""

    pid: int

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


Launch = Callable[[list[str]], Process]
"""Arguments of `mengya` -> the process that runs it."""
Strike = Callable[[Process, random.Random], bool]
"""Kills something of a running process; returns whether it is to go on by itself."""

_LAUNCHER = "-m torch.distributed.run --nproc-per-node 2 --max-restarts 1000 --monitor-interval 0.1 -m mengya".split()
_DEEPSPEED = {
    "train_batch_size": "auto",
    "gradient_clipping": "auto",
    "zero_optimization": {"stage": 2},
}
ENGINES = ("single", "ddp", "fsdp", "deepspeed")


def launch(arguments: list[str]) -> Process:
    return subprocess.Popen([sys.executable, "-m", "mengya", *arguments], stdout=subprocess.DEVNULL)


def launch_two(engine: str, folder: Path) -> Launch:
    """Two ranks under torchrun, which starts them again when one is lost."""
    overrides = [f'{stage}.parallel="{engine}"' for stage in STAGES]
    if engine == "deepspeed":
        (folder / "ds.json").write_text(json.dumps(_DEEPSPEED), encoding="utf-8")
        overrides += [f"{stage}.deepspeed='{folder / 'ds.json'}'" for stage in STAGES]

    def start(arguments: list[str]) -> Process:
        command = [sys.executable, *_LAUNCHER, *arguments, *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)

    return start


def kill_process(process: Process, rng: random.Random) -> bool:
    process.kill()
    code = process.wait()
    assert code in (0, -signal.SIGKILL), f"the run ended by itself with {code}"
    return False


def kill_ranks(process: Process, rng: random.Random) -> bool:
    """One rank, or torchrun and all of them."""
    ranks = _children(process.pid)
    if len(ranks) == 2 and rng.random() < 0.5:
        _kill(rng.choice(ranks))
        return True
    process.kill()
    for rank in ranks:
        _kill(rank)
    process.wait()
    return False


def _children(pid: int) -> list[int]:
    """Its child processes, Linux only."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may just have ended
        os.kill(pid, signal.SIGKILL)


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_project(directory: Path, compiled: bool) -> Path:
    """Text, conversations, pairs, questions and a recipe that trains a tiny model on them. Returns the recipe."""
    directory.mkdir(parents=True, exist_ok=True)
    things = {"猫": "鱼", "牛": "草", "熊猫": "竹子", "兔子": "萝卜", "猴子": "桃子", "鸟": "虫子", "马": "麦子"}
    places = ["山上", "河边", "森林里", "村子里", "草地上", "小路旁"]
    texts, talks, pairs, questions = [], [], [], []
    for number in range(240):
        animal, food = list(things.items())[number % len(things)]
        place, other = places[number % len(places)], list(things.values())[(number + 3) % len(things)]
        texts.append(
            f"第{number}天，{animal}在{place}找到了{food}。它吃得很高兴，又去{place}玩。{animal}喜欢吃{food}。"
        )
        ask = f"第{number}天{animal}在{place}吃什么？"
        talks.append({"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": f"{food}。"}]})
        pairs.append({"prompt": ask, "chosen": f"{food}。", "rejected": f"{other}，{other}。"})
    for number, (animal, food) in enumerate(list(things.items())[:3]):
        questions.append(
            {"kind": "fact", "id": f"f{number}", "prompt": f"{animal}吃什么？", "answer": food, "accept": []}
        )
        numbers = (10 + number, 20 + 3 * number)
        prompt = f"{numbers[0]}+{numbers[1]}="
        questions.append({"kind": "addition", "id": f"a{number}", "prompt": prompt, "answer": str(sum(numbers))})
    (directory / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    _write_rows(directory / "text.jsonl", [{"text": text} for text in texts])
    _write_rows(directory / "talks.jsonl", talks)
    _write_rows(directory / "pairs.jsonl", pairs)
    _write_rows(directory / "questions.jsonl", questions)
    training = f"""seq_len = 64
batch_tokens = 256
micro_batch = 2
steps = {STEPS}
heldout_every = 10
checkpoint_every = 7
compile = {str(compiled).lower()}
optim.lr = 3e-3
"""
    recipe = f"""[corpus]
path = '{directory / "text.jsonl"}'
heldout = 0.1

[tokenizer]
vocab_size = 320

[tokenize]

[pretrain]
{training}
[pretrain.model]
hidden_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 96
max_position_embeddings = 128

[sft]
path = '{directory / "talks.jsonl"}'
heldout = 0.1
{training}
[dpo]
path = '{directory / "pairs.jsonl"}'
heldout = 0.1
{training.replace("64", "128")}
[evaluate]
models = ["@pretrain", "@sft", "@dpo"]
questions = '{directory / "questions.jsonl"}'
preferences = '{directory / "pairs.jsonl"}'
"""
    path = directory / "recipe.toml"
    path.write_text(recipe, encoding="utf-8")
    return path


def finish(start: Launch, recipe: Path, out: Path) -> None:
    """Run to the end."""
    code = start(["run", str(recipe), "--out", str(out)]).wait()
    assert code == 0, f"the run ended with {code}"


def _rows_so_far(out: Path, stage: str) -> int:
    """Steps that a stage has logged; 0 before it began, STEPS once it is done."""
    if (out / stage).exists():
        return STEPS
    try:
        return (out / f"{stage}.partial" / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def survive(
    start: Launch, recipe: Path, out: Path, kills: int, rng: random.Random, strike: Strike = kill_process
) -> int:
    """Spread `kills` evenly over the stages, then run to the end. Returns how many hit a living process."""
    arguments = ["run", str(recipe), "--out", str(out)]
    hits, process = 0, None
    for index, stage in enumerate(STAGES):
        share = kills // len(STAGES) + (index < kills % len(STAGES))
        for reached, delay in _moments(out, stage, share, rng):
            process = process or start(arguments)
            while not reached() and process.poll() is None:
                time.sleep(0.0005)
            time.sleep(delay)
            alive = process.poll() is None
            hits += alive
            if not (alive and strike(process, rng)):
                process = None
    code = (process or start(arguments)).wait()
    assert code == 0, f"the run ended with {code}"
    return hits


def _moments(out: Path, stage: str, kills: int, rng: random.Random) -> Iterator[tuple[Callable[[], bool], float]]:
    """When to kill: mostly at random steps, a few times soon after the stage began, once while it writes its model."""
    partial = out / f"{stage}.partial"
    early, late = kills // 5, int(kills > 2)
    for _ in range(early):
        yield partial.exists, rng.uniform(0, 2)
    for target in sorted(rng.randrange(1, STEPS) for _ in range(kills - early - late)):
        yield _reaches(out, stage, target), rng.uniform(0, 0.02)
        print(f"{stage}: killed after step {_rows_so_far(out, stage)}", flush=True)
    if late:
        yield lambda: (partial / "model.safetensors").exists() or (out / stage).exists(), 0.0


def _reaches(out: Path, stage: str, step: int) -> Callable[[], bool]:
    return lambda: _rows_so_far(out, stage) >= step


def compare(out: Path, wanted: Path) -> tuple[bool, int]:
    """(everything is equal to the bit, steps that are missing, doubled or different)."""
    lost, equal = 0, _report(out) == _report(wanted)
    for stage in STAGES:
        found, expected = (_rows(root / stage / "metrics.jsonl") for root in (out, wanted))
        assert [row["step"] for row in expected] == list(range(1, STEPS + 1))
        lost += sum(found.count(row) != 1 for row in expected) + max(0, len(found) - len(expected))
        weights, expected_weights = ((root / stage / "model.safetensors").read_bytes() for root in (out, wanted))
        names, expected_names = ({path.name for path in (root / stage).iterdir()} for root in (out, wanted))
        equal = equal and found == expected and weights == expected_weights and names == expected_names
    return equal, lost


def _report(out: Path) -> dict:
    """What of the report does not depend on the clock."""
    report = json.loads((out / "evaluate" / "report.json").read_text(encoding="utf-8"))
    del report["artifacts"]
    report["training"] = [{k: v for k, v in run.items() if k not in _CLOCK} for run in report["training"].values()]
    return report


def _rows(path: Path) -> list[dict]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in _CLOCK} for line in lines]


def endure(engine: str, recipe: Path, root: Path, kills: int, rng: random.Random) -> tuple[int, bool, int]:
    """(kills that hit, identical, lost) of one engine."""
    root.mkdir()
    start, strike = (launch, kill_process) if engine == "single" else (launch_two(engine, root), kill_ranks)
    finish(start, recipe, root / "undisturbed")
    hits = survive(start, recipe, root / "killed", kills, rng, strike)
    identical, lost = compare(root / "killed", root / "undisturbed")
    print(f"{engine}: {hits} kills, identical: {identical}, lost: {lost}", flush=True)
    return hits, identical, lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    engines = arguments.engines.split(",")
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        recipe = write_project(root / "project", arguments.compile)
        shares = [arguments.kills // len(engines) + (i < arguments.kills % len(engines)) for i in range(len(engines))]
        found = [endure(e, recipe, root / e, share, rng) for e, share in zip(engines, shares, strict=True)]
    print(
        json.dumps(
            {
                "kills": sum(hits for hits, _, _ in found),
                "engines": dict(zip(engines, (hits for hits, _, _ in found), strict=True)),
                "compile": arguments.compile,
                "identical": all(identical for _, identical, _ in found),
                "lost": sum(lost for _, _, lost in found),
            }
        )
    )


if __name__ == "__main__":
    main()
