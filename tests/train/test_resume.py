"""kill -9 in the middle of pretrain, sft and dpo, the same command again: every figure and every bit is as undisturbed.

bench/survival.py does the same with more kills, with whole processes and, if asked, with compiled layers.
"""

import importlib.util
import multiprocessing
import random
import runpy
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")

ROOT = Path(__file__).parents[2]
PRELOAD = ["mengya.cli", "mengya.stage", "torch._dynamo", "safetensors.torch", "mengya.train.run"]
PRELOAD += [
    f"mengya.stages.{name}"
    for name in ("corpus", "tokenizer", "tokenize", "pretrain", "sft", "dpo", "merge", "evaluate")
]
PRELOAD += ["peft"]


@pytest.fixture(scope="module")
def survival():
    spec = importlib.util.spec_from_file_location("survival", ROOT / "bench" / "survival.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        spec.loader.exec_module(module)
    return module


class Forked:
    """A process that came from a server which has already imported everything; otherwise like subprocess.Popen."""

    def __init__(self, process):
        self._process = process
        self.kill = process.kill

    def poll(self):
        return self._process.exitcode

    def wait(self):
        self._process.join()
        return self._process.exitcode


@pytest.fixture(scope="module")
def launch(start):
    """Starts `mengya` in a process of its own."""
    return lambda arguments: start(["mengya", *arguments], runpy.run_module, "mengya.cli", None, "__main__", True)


@pytest.fixture(scope="module")
def launch_on_shim(start, survival):
    """Starts `mengya` on a disk that loses what was not flushed."""
    shim = survival.power_cut.__file__
    return lambda arguments: start([shim, *arguments], runpy.run_path, shim, None, "__main__")


@pytest.fixture(scope="module")
def start():
    """start(argv, function, *arguments): in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)

        def start(argv, function, *arguments):
            with patch.context() as inner:
                inner.setattr(sys, "argv", argv)  # handed on to the child
                process = context.Process(target=function, args=arguments)
                process.start()
            return Forked(process)

        yield start


@pytest.fixture(scope="module")
def recipe(survival, tmp_path_factory):
    return survival.write_project(tmp_path_factory.mktemp("project"), compiled=False)


@pytest.fixture(scope="module")
def undisturbed(survival, launch, recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    survival.finish(launch, recipe, out)
    return out


def test_killed_runs_go_on_to_the_same_bits(survival, launch, recipe, undisturbed, tmp_path):
    hits = survival.survive(launch, recipe, tmp_path / "out", 6, random.Random(1))
    assert hits >= 4, "too few kills met a living process"
    assert survival.compare(tmp_path / "out", undisturbed) == (True, 0)


def test_killed_adapters_go_on_to_the_same_bits(survival, launch, tmp_path):
    recipe = survival.write_project(tmp_path / "project", compiled=False, model="lora")
    survival.finish(launch, recipe, tmp_path / "undisturbed")
    hits = survival.survive(launch, recipe, tmp_path / "out", 4, random.Random(1))
    assert hits >= 3, "too few kills met a living process"
    assert survival.compare(tmp_path / "out", tmp_path / "undisturbed") == (True, 0)
    assert (tmp_path / "out" / "dpo" / "adapter_model.safetensors").exists()
    weights = tmp_path / "out" / "merge" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert survival.compare(tmp_path / "out", tmp_path / "undisturbed") == (False, 0)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="the shim needs a tmpfs")
def test_power_cuts_cost_nothing_that_was_made(survival, launch, launch_on_shim, recipe, undisturbed):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        found = survival.cut_power(launch_on_shim, recipe, Path(root), 10, random.Random(2), launch, 1.0)
        assert found[0] >= 7 and found[1] == 0
        assert survival.compare(Path(root) / "cut", undisturbed) == (True, 0)


def test_the_shim_loses_what_was_not_flushed(survival, tmp_path):
    seen = set()
    for seed in range(60):
        root, ledger = tmp_path / f"{seed}", survival.power_cut.Ledger(tmp_path / f"{seed}.ledger")
        ledger.folder.mkdir()
        root.mkdir()
        (root / "a").write_text("old")
        for path in (root / "a", root):
            ledger.enter(path)
        (root / "a").write_text("new")
        (root / "a").rename(root / "b")
        (root / "later").write_text("x")
        survival.power_cut.lose(root, ledger, random.Random(seed))
        seen.add(tuple(sorted((path.name, path.read_text()) for path in root.iterdir())))
    assert {(("a", "old"),), (("a", "new"),), (("b", "new"), ("later", "x"))} <= seen
    names = {tuple(name for name, _ in files) for files in seen}
    assert names == {("a",), ("b", "later")}  # those of the flush, or the present ones


def test_the_comparison_sees_a_changed_bit_and_a_doubled_step(survival, undisturbed, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(undisturbed, out)
    assert survival.compare(out, undisturbed) == (True, 0)
    metrics = out / "sft" / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    metrics.write_text("".join([*lines, lines[-1]]), encoding="utf-8")
    assert survival.compare(out, undisturbed) == (False, 2)
    metrics.write_text("".join(lines), encoding="utf-8")
    weights = out / "dpo" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert survival.compare(out, undisturbed) == (False, 0)
