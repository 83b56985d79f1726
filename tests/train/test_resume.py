"""kill -9 in the middle of pretrain, sft and dpo, the same command again: every figure and every bit is as undisturbed.

bench/survival.py does the same with more kills, with whole processes and, if asked, with compiled layers.
"""

import importlib.util
import multiprocessing
import random
import runpy
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")

ROOT = Path(__file__).parents[2]
PRELOAD = ["mengya.cli", "mengya.stage", "torch._dynamo", "safetensors.torch", "mengya.train.run"]
PRELOAD += [
    f"mengya.stages.{name}" for name in ("corpus", "tokenizer", "tokenize", "pretrain", "sft", "dpo", "evaluate")
]


@pytest.fixture(scope="module")
def survival():
    spec = importlib.util.spec_from_file_location("survival", ROOT / "bench" / "survival.py")
    module = importlib.util.module_from_spec(spec)
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
def launch():
    """Starts `mengya` in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)

        def start(arguments):
            with patch.context() as inner:
                inner.setattr(sys, "argv", ["mengya", *arguments])  # handed on to the child
                process = context.Process(target=runpy.run_module, args=("mengya.cli", None, "__main__", True))
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
    hits = survival.survive(launch, recipe, tmp_path / "out", 9, random.Random(1))
    assert hits >= 6, "too few kills met a living process"
    assert survival.compare(tmp_path / "out", undisturbed) == (True, 0)


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
