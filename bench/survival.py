"""Kill runs of pretrain, sft and dpo with SIGKILL at random moments until they are done, and compare every step's
figures and every weight with an undisturbed run.

    python bench/survival.py [--kills 6] [--engines single,ddp] [--compile] [--seed 0]
    python bench/survival.py --power-cuts 50 [--seed 0]

A run in one process is killed and the same command given again. A run of two processes loses one of them, which
torchrun has to mend by itself, or all of them with torchrun, after which the same command is given again. The kills are
shared out among the engines; there are single, ddp, fsdp and deepspeed. The last line is JSON: the kills, whether
everything is identical, and how many steps are missing, doubled or different.

With --power-cuts, a run in one process loses what it had not flushed (see power_cut.py): at random flushes, which stand
between all that it writes, in each stage and between stages; and at random moments. `lost` then also counts checkpoints
and finished stages that were on the disk before a cut and are not after it.
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

import power_cut

from mengya.errors import UserError
from mengya.train.checkpoint_storage import verify

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


def endure_power_cuts(cuts: int, compiled: bool, rng: random.Random) -> dict:
    """The last line of the benchmark."""
    shm = Path("/dev/shm")  # a file system that never uses a number of a file again
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as scratch:
        root = Path(scratch)
        recipe = write_project(root / "project", compiled)
        finish(launch, recipe, root / "undisturbed")
        (root / "power").mkdir()
        hits, lost = cut_power(launch_on_shim, recipe, root / "power", cuts, rng)
        identical, steps = compare(root / "power" / "cut", root / "undisturbed")
    return {"power_cuts": hits, "compile": compiled, "identical": identical, "lost": lost + steps}


def _made(out: Path) -> set[str]:
    """What is whole: finished stages, and the checkpoints of unfinished ones."""
    made = {path.parent.name for path in out.glob("*/stage.json") if path.parent.suffix != ".partial"}
    for path in out.glob("*.partial/checkpoints/step-*"):
        with contextlib.suppress(UserError):
            made.add(f"{path.parts[-3].removesuffix('.partial')} step {verify(path).step}")
    return made


_FLUSHES = 300
"""Of a whole run, about."""


def _progress(made: set[str]) -> float:
    """How far a run is, from 0 to 1."""
    steps = [max((int(m.split()[2]) for m in made if m.startswith(f"{s} step ")), default=0) for s in STAGES]
    return sum(1 if s in made else step / STEPS for s, step in zip(STAGES, steps, strict=True)) / len(STAGES)


def _is_kept(thing: str, found: set[str]) -> bool:
    """Whether what had been made is there, or something further on the way."""
    stage, _, step = thing.partition(" step ")
    if stage in found or not step:
        return stage in found
    return any(int(other.rpartition(" ")[2]) >= int(step) for other in found if other.startswith(f"{stage} step "))


def launch_on_shim(arguments: list[str]) -> Process:
    return subprocess.Popen([sys.executable, power_cut.__file__, *arguments], stdout=subprocess.DEVNULL)


def cut_power(
    start: Launch, recipe: Path, root: Path, cuts: int, rng: random.Random, plain: Launch = launch, seconds: float = 6
) -> tuple[int, int]:
    """Cut so often, then run to the end. Returns the cuts that hit a running process, and what was lost by them.

    `start` takes the arguments of power_cut.py, `plain` those of `mengya`. A quarter of the cuts come at a random
    moment of the first `seconds`, the others at a random flush.
    """
    out, folder = root / "cut", root / "ledger"
    folder.mkdir()
    out.mkdir()
    ledger = power_cut.Ledger(folder)
    ledger.enter(out)
    command = ["run", str(recipe), "--out", str(out)]
    ahead, hits, lost = _FLUSHES, 0, 0
    for number in range(cuts):
        # So many flushes further, on the average, that the last cut comes near the end of the run.
        at = rng.randint(1, 4 + int(2.5 * ahead / (cuts - number))) if rng.random() < 0.75 else 0
        process, until = start([str(out), str(folder), str(at), *command]), time.monotonic() + rng.uniform(0.1, seconds)
        while process.poll() is None and (at or time.monotonic() < until):
            time.sleep(0.01)
        process.kill()
        if process.wait() == 0:
            break
        hits += 1
        before = _durable(out, ledger)
        power_cut.lose(out, ledger, rng)
        found = _made(out)
        ahead = _FLUSHES * (1 - _progress(found))
        gone = sorted(thing for thing in before if not _is_kept(thing, found))
        lost += len(gone)
        there = ", ".join(sorted(found)) or "nothing yet"
        print(f"cut {hits}: {there}; lost: {', '.join(gone) or 'nothing'}", flush=True)
    finish(plain, recipe, out)
    return hits, lost


def _durable(out: Path, ledger: power_cut.Ledger) -> set[str]:
    """What `_made` would find if nothing came to the disk but what was flushed, as far as names go."""

    def named(number: int) -> dict:
        return ledger.names(number) or {}

    made = set()
    for name, (number, is_folder) in named(out.stat().st_ino).items():
        inside = named(number) if is_folder else {}
        if not name.endswith(".partial"):
            made |= {name} if "stage.json" in inside else set()
        elif "checkpoints" in inside:
            steps = {n: i for n, (i, _) in named(inside["checkpoints"][0]).items() if n.startswith("step-")}
            whole = [n for n, i in steps.items() if "checkpoint.json" in named(i)]
            made |= {f"{name.removesuffix('.partial')} step {n[5:]}" for n in whole}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--power-cuts", type=int, default=0, help="lose what was not flushed, so often, instead")
    parser.add_argument("--engines", default="single,ddp")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    engines = arguments.engines.split(",")
    if unknown := set(engines) - set(ENGINES):
        parser.error(f"--engines: {', '.join(sorted(unknown))} is not one of {', '.join(ENGINES)}")
    rng = random.Random(arguments.seed)
    if arguments.power_cuts:
        print(json.dumps(endure_power_cuts(arguments.power_cuts, arguments.compile, rng)))
        return
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
