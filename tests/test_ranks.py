"""Several processes as the user meets them: one voice, one verdict, and a killed rank brings the run back by itself."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mengya import ranks
from mengya.metrics import read_jsonl

from .conftest import in_each_step

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
CLOCK = {"tokens_per_second"}


def rows(folder):
    path = folder / "metrics.jsonl"
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in read_jsonl(path)] if path.exists() else []


def reached(partial, count, processes, seconds=120):
    """Wait until so many steps are logged."""
    end = time.monotonic() + seconds
    while len(rows(partial)) < count and time.monotonic() < end:
        assert all(process.poll() is None for process in processes), "it ended too early"
        time.sleep(0.01)


def assert_close(found, wanted):
    """float32; what another order of sums changes grows from step to step, most of all in the gradient's norm."""
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() & {"loss", "heldout_loss"}:
            assert row[key] == pytest.approx(other[key], rel=1e-3)


def test_one_process_needs_no_group():
    assert (ranks.rank(), ranks.size(), ranks.is_main(), ranks.launched()) == (0, 1, True, False)
    assert ranks.sum_of(3, 4) == [3, 4] and ranks.any_of(True) and not ranks.any_of(False)
    assert ranks.on_main(lambda: 5) == 5
    with ranks.group():
        ranks.barrier()


def test_rows_that_two_ranks_cannot_share_are_refused_once_before_anything_runs(launch_ranks, project):
    ended = launch_ranks("run", "tiny.toml", "--out", "run", "pretrain.batch_tokens=96", cwd=project).wait()
    assert [code for code, _ in ended] == [2, 2]
    shown = "".join(text for _, text in ended)
    assert shown == (
        "mengya: tiny.toml is not valid:\n"
        "  pretrain: the 3 rows of a step (batch_tokens / seq_len) cannot be shared evenly by 2 ranks; "
        "set batch_tokens to 4 x seq_len, or start 1 processes\n"
    )
    assert not (project / "run").exists()


REFUSED_BY_A_SLOW_RANK = """
import threading
from mengya import ranks
from mengya.errors import UserError

first_to_fail, ranks.time.sleep = ranks._first_to_fail, lambda seconds: None
def late(store):
    threading.Event().wait(2 if ranks.rank() == SLOW else 0)
    return first_to_fail(store)
ranks._first_to_fail = late
def refuse():
    raise UserError("why")
try:
    with ranks.group():
        ranks.on_main(refuse) if SLOW == 0 else refuse()
except UserError as error:
    print(error)
    raise SystemExit(2) from None
"""


@pytest.mark.parametrize("slow", [0, 1])
def test_rank_0_has_the_last_word(launch_ranks, tmp_path, slow):
    """Also when it, and the store of the group with it, is gone before another rank asks who failed first."""
    setup = f"SLOW = {slow}\n{REFUSED_BY_A_SLOW_RANK}"
    assert launch_ranks(cwd=tmp_path, setup=setup).wait() == [(2, "why\n"), (2, "")]


def test_an_interrupted_run_of_two_ranks_is_ended_by_one_and_a_second_run_is_kept_out(launch_ranks, mengya, project):
    recipe = ("run", "tiny.toml", "pretrain.steps=120", "pretrain.checkpoint_every=40")
    at_once = "from mengya import ranks; ranks.time.sleep = lambda seconds: None"
    two = launch_ranks(*recipe, "--out", "two", cwd=project, setup=at_once)
    reached(project / "two" / "pretrain.partial", 5, two.processes)
    other = mengya(*recipe, "--out", "two")
    assert other.code == 2 and "another run is working in two" in other.err
    for process in two.processes:
        os.kill(process.pid, signal.SIGINT)
    ended = two.wait()
    assert [code for code, _ in ended] == [130, 130]
    assert sum(text.count("the same command goes on from here") for _, text in ended) == 1
    assert "Traceback" not in ended[0][1] + ended[1][1]
    assert "▶" not in ended[1][1], "rank 1 must be silent"
    steps = len(rows(project / "two" / "pretrain.partial"))
    assert 5 <= steps < 120
    again, whole = mengya(*recipe, "--out", "two"), mengya(*recipe, "--out", "one")
    assert again.code == whole.code == 0, again.err
    assert f"going on after step {steps}" in again.out
    assert_close(rows(project / "two" / "pretrain"), rows(project / "one" / "pretrain"))


def test_torchrun_brings_the_run_back_after_kill_9_of_the_rank_that_holds_the_lock(project, mengya):
    recipe = ["run", "tiny.toml", "pretrain.steps=40", "pretrain.checkpoint_every=4"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    agent = subprocess.Popen(
        [sys.executable, *command, "-m", "mengya", *recipe, "--out", "two"],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        reached(project / "two" / "pretrain.partial", 10, [agent])
        os.kill(workers_of(agent.pid)[0], signal.SIGKILL)
        shown = agent.communicate(timeout=150)[0]
    finally:
        agent.kill()
    assert agent.returncode == 0, shown
    assert shown.count("going on after step") == 1
    assert mengya(*recipe, "--out", "one").code == 0
    assert_close(rows(project / "two" / "pretrain"), rows(project / "one" / "pretrain"))


def test_a_compiler_that_breaks_on_one_of_two_ranks_ends_both_with_its_words(launch_ranks, mengya, project):
    """The steps before are not compiled here; those of test_bad_input.py are."""
    broken = project / "broken"
    broken.write_text("#!/bin/sh\necho out of space >&2\nexit 1\n")
    broken.chmod(0o755)
    recipe = ["run", "tiny.toml", "--until", "pretrain", "pretrain.checkpoint_every=2", "--out", "two"]
    breaks = f"import torch._inductor.config as c; c.cpp.cxx = ({str(broken)!r},)"
    breaks += "; import torch; torch.compiler.set_stance('default')"
    setup = "import torch; torch.compiler.set_stance('force_eager')"
    setup += f"; import os; os.environ['TORCHINDUCTOR_CACHE_DIR'] = {str(project)!r} + '/cache' + os.environ['RANK']"
    setup += "; from mengya import ranks; ranks.time.sleep = lambda seconds: None"
    setup += in_each_step(f"if self.seen == 2 and os.environ['RANK'] == '1': {breaks}")
    ended = launch_ranks(*recipe, "pretrain.compile=true", cwd=project, setup=setup).wait()
    assert ended[1][0] == 2 and ended[0][0] != 0
    shown = "".join(text for _, text in ended)
    assert shown.count("the compiler failed: ") == 1 and "with compile = false" in shown, shown
    assert "Traceback" not in shown
    result = mengya(*recipe, "pretrain.compile=false")
    assert result.code == 0 and "going on after step 2" in result.out, result.err


def workers_of(pid):
    """The ranks that torchrun has started, in order."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[1]
            if parent == str(pid):
                variables = open(f"/proc/{name}/environ", "rb").read().split(b"\0")
                found[next(int(v[5:]) for v in variables if v.startswith(b"RANK="))] = int(name)
        except (OSError, StopIteration):
            continue
    return [found[rank] for rank in sorted(found)]
