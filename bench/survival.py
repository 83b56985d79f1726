"""Kill runs of pretrain, sft and dpo with SIGKILL at random moments until they are done, and compare every step's
figures and every weight with an undisturbed run.

    python bench/survival.py [--kills 6] [--engines single,ddp] [--model native] [--compile] [--seed 0]
    python bench/survival.py --power-cuts 50 [--model native] [--seed 0]

With --model gpt2, lora or qlora, sft and dpo go on from a random model instead of a pretrained one: a GPT-2, which the
transformers library computes; an adapter on a Llama of ours; an adapter on a GPT-2 in 4 bits. Adapters are then merged.

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
from contest import features
from toy_project import MODELS, STAGES, STEPS, stages_of, write_project

from mengya.errors import UserError
from mengya.train.checkpoint_storage import verify

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


def launch_two(engine: str, folder: Path, stages: list[str]) -> Launch:
    """Two ranks under torchrun, which starts them again when one is lost."""
    overrides = [f'{stage}.parallel="{engine}"' for stage in stages]
    if engine == "deepspeed":
        (folder / "ds.json").write_text(json.dumps(_DEEPSPEED), encoding="utf-8")
        overrides += [f"{stage}.deepspeed='{folder / 'ds.json'}'" for stage in stages]

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
    hits, process, stages = 0, None, stages_of(recipe)
    for index, stage in enumerate(stages):
        share = kills // len(stages) + (index < kills % len(stages))
        for reached, delay in _moments(out, stage, share, rng):
            process = process or start(arguments)
            while not reached() and process.poll() is None:
                time.sleep(0.002)
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
        yield lambda: any(partial.glob("*.safetensors")) or (out / stage).exists(), 0.0


def _reaches(out: Path, stage: str, step: int) -> Callable[[], bool]:
    return lambda: _rows_so_far(out, stage) >= step


def compare(out: Path, wanted: Path) -> tuple[bool, int]:
    """(everything is equal to the bit, steps that are missing, doubled or different)."""
    lost, equal = 0, _report(out) == _report(wanted)
    for stage in (name for name in (*STAGES, "merge") if (wanted / name).exists()):
        weights, expected_weights = (_weights(root / stage) for root in (out, wanted))
        names, expected_names = ({path.name for path in (root / stage).iterdir()} for root in (out, wanted))
        equal = equal and weights == expected_weights and names == expected_names
        if stage == "merge":
            continue
        found, expected = (_rows(root / stage / "metrics.jsonl") for root in (out, wanted))
        assert [row["step"] for row in expected] == list(range(1, STEPS + 1))
        lost += sum(found.count(row) != 1 for row in expected) + max(0, len(found) - len(expected))
        equal = equal and found == expected
    return equal, lost


def _weights(directory: Path) -> dict[str, bytes]:
    """Of a model or an adapter, file by file."""
    found = {path.name: path.read_bytes() for path in directory.glob("*.safetensors")}
    assert found, f"{directory} has no weights"
    return found


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
    two = engine != "single"
    start, strike = (launch_two(engine, root, stages_of(recipe)), kill_ranks) if two else (launch, kill_process)
    finish(start, recipe, root / "undisturbed")
    hits = survive(start, recipe, root / "killed", kills, rng, strike)
    identical, lost = compare(root / "killed", root / "undisturbed")
    print(f"{engine}: {hits} kills, identical: {identical}, lost: {lost}", flush=True)
    return hits, identical, lost


def endure_power_cuts(cuts: int, compiled: bool, model: str, rng: random.Random) -> dict:
    """The last line of the benchmark."""
    shm = Path("/dev/shm")  # a file system that never uses a number of a file again
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as scratch:
        root = Path(scratch)
        recipe = write_project(root / "project", compiled, model)
        finish(launch, recipe, root / "undisturbed")
        (root / "power").mkdir()
        hits, lost = cut_power(launch_on_shim, recipe, root / "power", cuts, rng)
        identical, steps = compare(root / "power" / "cut", root / "undisturbed")
    return {"power_cuts": hits, "model": model, "compile": compiled, "identical": identical, "lost": lost + steps}


def _made(out: Path) -> set[str]:
    """What is whole: finished stages, and the checkpoints of unfinished ones."""
    made = {path.parent.name for path in out.glob("*/stage.json") if path.parent.suffix != ".partial"}
    for path in out.glob("*.partial/checkpoints/step-*"):
        with contextlib.suppress(UserError):
            made.add(f"{path.parts[-3].removesuffix('.partial')} step {verify(path).step}")
    return made


_FLUSHES = 300
"""Of a whole run, about."""


def _progress(made: set[str], stages: list[str]) -> float:
    """How far a run is, from 0 to 1."""
    steps = [max((int(m.split()[2]) for m in made if m.startswith(f"{s} step ")), default=0) for s in stages]
    return sum(1 if s in made else step / STEPS for s, step in zip(stages, steps, strict=True)) / len(stages)


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
        ahead = _FLUSHES * (1 - _progress(found, stages_of(recipe)))
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
    parser.add_argument("--model", choices=MODELS, default="native", help="what sft and dpo go on from")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    engines = arguments.engines.split(",")
    if unknown := set(engines) - set(ENGINES):
        parser.error(f"--engines: {', '.join(sorted(unknown))} is not one of {', '.join(ENGINES)}")
    rng = random.Random(arguments.seed)
    if arguments.power_cuts:
        found = endure_power_cuts(arguments.power_cuts, arguments.compile, arguments.model, rng)
        print(json.dumps(found | {"features": features()}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        recipe = write_project(root / "project", arguments.compile, arguments.model)
        shares = [arguments.kills // len(engines) + (i < arguments.kills % len(engines)) for i in range(len(engines))]
        found = [endure(e, recipe, root / e, share, rng) for e, share in zip(engines, shares, strict=True)]
    print(
        json.dumps(
            {
                "model": arguments.model,
                "kills": sum(hits for hits, _, _ in found),
                "engines": dict(zip(engines, (hits for hits, _, _ in found), strict=True)),
                "compile": arguments.compile,
                "identical": all(identical for _, identical, _ in found),
                "lost": sum(lost for _, _, lost in found),
                "features": features(),
            }
        )
    )


if __name__ == "__main__":
    main()
