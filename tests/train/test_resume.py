"""kill -9 in the middle of pretrain, sft and dpo, the same command again: every figure and every bit is as undisturbed.

bench/survival.py does the same with more kills, with whole processes and, if asked, with compiled layers.
"""

import importlib.util
import itertools
import random
import sys
import tempfile
from pathlib import Path

import pytest

from ..conftest import Command, script

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def survival():
    spec = importlib.util.spec_from_file_location("survival", ROOT / "bench" / "survival.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        spec.loader.exec_module(module)
    return module


class Process:
    """A command; like subprocess.Popen."""

    def __init__(self, command):
        self._command = command
        self.poll, self.kill = command.poll, command.kill

    def wait(self):
        return self._command.wait().code


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder, numbers = tmp_path_factory.mktemp("streams"), itertools.count()
    return lambda: folder / str(next(numbers))


@pytest.fixture(scope="module")
def launch(server, streams):
    """Starts `mengya` in a process of its own."""
    return lambda arguments: Process(Command(server, arguments, ROOT, streams()))


@pytest.fixture(scope="module")
def launch_on_shim(server, streams, survival):
    """Starts `mengya` on a disk that loses what was not flushed."""
    shim = survival.power_cut.__file__
    return lambda arguments: Process(Command(server, None, ROOT, streams(), script(shim, *arguments)))


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
