"""Checkpoints: bitwise, whole or not at all, rotated, without pickles, and from any number of ranks to any other."""

import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mengya.errors import UserError
from mengya.train import checkpoint_storage
from mengya.train.checkpoint import Checkpoints, read_weights
from mengya.train.checkpoint_storage import verify

from ..conftest import script

SCRIPT = Path(__file__).parent / "two_ranks.py"
RANKS = runpy.run_path(str(SCRIPT))
CONFIG, check_equal = RANKS["CONFIG"], RANKS["check_equal"]
BOTH = pytest.mark.parametrize("asynchronous", [False, True])
NEW_AND_REPLACED = pytest.mark.parametrize(("name", "asynchronous"), [("step-2", True), ("best", False)])


def odd_state():
    """Tensors of every kind that a run has."""
    large = torch.randn(6, 8)
    return {
        "model.weight": large,
        "model.transposed": torch.randn(3, 5).t(),
        "model.slice": torch.randn(9, 4)[2:5],
        "model.column": torch.randn(9, 4)[:, 1],
        "model.half": torch.randn(4).bfloat16(),
        "model.empty": torch.empty(0, 4),
        "model.parameter": torch.nn.Parameter(torch.randn(3)),
        "optimizer.step.weight": torch.tensor(7.0),
        "optimizer.count.weight": torch.tensor(3),
        "optimizer.exp_avg.weight": large.double(),
        "rng.0": torch.get_rng_state(),
    }


def blank(tensors):
    return {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}


def make(root, keep=2, asynchronous=False):
    return Checkpoints(root, keep, CONFIG, asynchronous)


def save(root, step, name="", keep=5):
    """A small checkpoint whose weights are its step."""
    tensors = {"model.x": torch.full((1000,), float(step)), "rng.0": torch.get_rng_state()}
    make(root, keep).save(name or f"step-{step}", step, tensors, {"value": step})


def value(root, saved):
    found = {"model.x": torch.zeros(1000)}
    make(root).load(saved, found)
    assert (found["model.x"] == found["model.x"][0]).all()
    return int(found["model.x"][0])


def names(root):
    return sorted(path.name for path in root.iterdir())


@BOTH
def test_round_trip_is_bitwise_and_in_place(tmp_path, asynchronous):
    checkpoints, tensors = make(tmp_path, 2, asynchronous), odd_state()
    state = {"best": 0.1 + 0.2, "guard": {"mean_norm": 1 / 3}, "none": None, "字": [1, "萌芽"]}
    checkpoints.save("step-3", 3, tensors, state)
    saved = checkpoints.latest()
    assert (saved.step, saved.state, saved.path) == (3, state, tmp_path / "step-3")
    found = blank(tensors)
    places = {name: tensor.data_ptr() for name, tensor in found.items()}
    checkpoints.load(saved, found)
    assert {name: tensor.data_ptr() for name, tensor in found.items()} == places
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name
    transposed = {name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in found.items()}
    for tensor in transposed.values():
        tensor.zero_()
    checkpoints.load(saved, transposed)
    check_equal(transposed, {name: tensor.detach() for name, tensor in tensors.items()})


def test_an_asynchronous_save_holds_what_was_there_when_it_was_called(tmp_path, monkeypatch):
    order, real = [], checkpoint_storage.save_file

    def slow(*arguments):
        order.append("written")
        assert gate.wait(10)
        real(*arguments)

    gate = threading.Event()
    monkeypatch.setattr(checkpoint_storage, "save_file", slow)
    checkpoints, tensors = make(tmp_path, 5, True), {"model.x": torch.ones(1000), "optimizer.step.x": torch.tensor(1.0)}
    for step in (1, 2):
        gate.clear()
        checkpoints.save(f"step-{step}", step, tensors, {})
        for tensor in tensors.values():
            tensor.add_(1)  # training goes on while it is written
        assert not (tmp_path / f"step-{step}").exists()
        places = {t.data_ptr() for t in checkpoints._buffers.values()}
        gate.set()
        checkpoints.wait()
        assert {t.data_ptr() for t in checkpoints._buffers.values()} == places, "new buffers at each save"
        found = blank(tensors)
        checkpoints.load(checkpoints.latest(), found)
        assert found["model.x"].unique().tolist() == [step] and found["optimizer.step.x"] == step


def test_a_process_that_ends_by_an_error_still_writes_its_last_checkpoint(tmp_path):
    program = f"""
import runpy, time, torch
from pathlib import Path
from mengya.train import checkpoint_storage
from mengya.train.checkpoint import Checkpoints
real = checkpoint_storage.save_file
checkpoint_storage.save_file = lambda *arguments: (time.sleep(0.5), real(*arguments))
config = runpy.run_path({str(SCRIPT)!r})["CONFIG"]
Checkpoints(Path({str(tmp_path)!r}), 2, config, True).save("step-1", 1, {{"model.x": torch.ones(1000)}}, {{}})
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", program], env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == 3
    assert value(tmp_path, make(tmp_path).latest()) == 1


def test_the_directory_is_safetensors_and_json(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("pickle")

    for name in ("pickle.Pickler", "pickle.dump", "pickle.dumps", "pickle.load", "pickle.loads", "pickle.Unpickler"):
        monkeypatch.setattr(name, forbidden)
    monkeypatch.setattr("torch.save", forbidden)
    monkeypatch.setattr("torch.load", forbidden)
    checkpoints, tensors = make(tmp_path), odd_state()
    checkpoints.save("step-1", 1, tensors, {})
    checkpoints.load(checkpoints.latest(), blank(tensors))
    assert names(tmp_path / "step-1") == ["checkpoint.json", "config.json", "rank-0.safetensors"]
    assert json.loads((tmp_path / "step-1" / "config.json").read_text()) == CONFIG
    record = json.loads((tmp_path / "step-1" / "checkpoint.json").read_text())
    assert record["step"] == 1 and record["files"].keys() == {"config.json", "rank-0.safetensors"}
    with safe_open(tmp_path / "step-1" / "rank-0.safetensors", "pt") as file:
        assert set(file.keys()) == tensors.keys()


def test_nothing_is_warned_of(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(tmp_path, 1)
        assert value(tmp_path, make(tmp_path).latest()) == 1


def test_consolidated_weights_have_the_models_names_and_types(tmp_path):
    tensors = odd_state()
    make(tmp_path).save("best", 3, tensors, {})
    found = read_weights(tmp_path / "best")
    wanted = {n.removeprefix("model."): t.detach() for n, t in tensors.items() if n.startswith("model.")}
    check_equal(found, wanted)
    assert found["half"].dtype == torch.bfloat16
    (tmp_path / "best" / "rank-0.safetensors").write_bytes(b"")
    for name in ("best", "step-1"):
        with pytest.raises(UserError, match=rf"{name} cannot be read .*; delete it"):
            read_weights(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} cannot be read .*; delete it"):
            verify(tmp_path / name)


def test_rotation_keeps_the_newest_by_number(tmp_path):
    save(tmp_path, 1, "best")
    for step in (2, 9, 10, 100):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["best", "step-10", "step-100"]
    assert make(tmp_path).latest().step == 100 and verify(tmp_path / "best").step == 1


# --- whole or not at all ----------------------------------------------------------------------------------------------


def operations(monkeypatch, fail_at, after, fault):
    """Let `fault` happen at the operation number `fail_at` on the disk, before or `after` it is done."""
    count = [0]

    def wrap(owner, name):
        real = getattr(owner, name)

        def call(*arguments, **named):
            count[0] += 1
            mine = count[0] == fail_at
            if mine and not after:
                fault()
            result = real(*arguments, **named)
            if mine:
                fault()
            return result

        monkeypatch.setattr(owner, name, call)

    wrap(checkpoint_storage, "save_file")
    for owner, name in ((os, "fsync"), (Path, "mkdir"), (Path, "rename"), (Path, "write_text"), (shutil, "rmtree")):
        wrap(owner, name)
    return count


def broken_disk():
    raise OSError(5, "injected")


@pytest.mark.parametrize("after", [False, True])
@NEW_AND_REPLACED
def test_a_failure_at_any_moment_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, name, after, asynchronous):
    outcomes, fail_at, failed = [], 0, True
    while failed:
        fail_at += 1
        root = tmp_path / str(fail_at)
        save(root, 1, "step-1")
        save(root, 1, "best")
        with monkeypatch.context() as patch:
            operations(patch, fail_at, after, broken_disk)
            checkpoints = make(root, 1, asynchronous)
            try:
                checkpoints.save(name, 2, {"model.x": torch.full((1000,), 2.0)}, {})
                checkpoints.wait()
                failed = False
            except OSError as error:
                assert str(error) == "[Errno 5] injected"
        checkpoints = make(root)
        newest = checkpoints.latest()
        saved = newest if name != "best" else verify(root / "best")
        assert value(root, saved) == saved.step == saved.state.get("value", 2)
        assert not [path for path in names(root) if path.startswith(".")]
        outcomes.append(saved.step)
    assert fail_at > 10 and outcomes == sorted(outcomes) and set(outcomes) == {1, 2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no kill -9")
@NEW_AND_REPLACED
def test_kill_9_between_any_two_operations_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, name, asynchronous):
    outcomes, fail_at, code = [], 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        fail_at += 1
        root = tmp_path / str(fail_at)
        save(root, 1, "step-1")
        save(root, 1, "best")
        child = os.fork()
        if not child:
            try:
                operations(monkeypatch, fail_at, False, lambda: os.kill(os.getpid(), signal.SIGKILL))
                checkpoints = make(root, 1, asynchronous)
                checkpoints.save(name, 2, {"model.x": torch.full((1000,), 2.0)}, {})
                checkpoints.wait()
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        checkpoints = make(root)
        newest = checkpoints.latest()  # tidies up
        saved = newest if name != "best" else verify(root / "best")
        assert value(root, saved) == saved.step
        assert not [path for path in names(root) if path.startswith(".")]
        save(root, 3, name)
        assert verify(root / name).step == 3
        outcomes.append(saved.step)
    assert code == 0 and fail_at > 10 and outcomes == sorted(outcomes) and set(outcomes) == {1, 2}


@BOTH
def test_a_full_disk_is_an_error_of_the_system_and_leaves_the_old_one(small_disk, asynchronous):
    save(small_disk, 1)
    checkpoints = make(small_disk, 1, asynchronous)
    for _ in range(2):  # and again
        with pytest.raises(OSError) as caught:
            checkpoints.save("step-2", 2, {"model.x": torch.zeros(10**6)}, {})
            checkpoints.wait()
        assert caught.value.errno == 28 and "step-2" in str(caught.value.filename)
        assert names(small_disk) == ["step-1"] and value(small_disk, checkpoints.latest()) == 1
    checkpoints.save("step-2", 2, {"model.x": torch.full((1000,), 2.0)}, {})
    assert value(small_disk, checkpoints.latest()) == 2


def test_a_limit_of_the_system_likewise(tmp_path):
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the nearest to a full disk that needs no rights
    try:
        with pytest.raises(OSError) as caught:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno is not None and names(tmp_path) == ["step-1"]


# --- damage -----------------------------------------------------------------------------------------------------------


def cut(share):
    def damage(path):
        file = path / "rank-0.safetensors"
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])

    return damage


def flip(name, at):
    def damage(path):
        content = bytearray((path / name).read_bytes())
        content[at] ^= 1
        (path / name).write_bytes(content)

    return damage


def change_state(path):
    record = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(record | {"step": 7}))


def write(name, content):
    return lambda path: (path / name).write_bytes(content)


def make_a_file(path):
    shutil.rmtree(path)
    path.write_bytes(b"old")


DAMAGE = {
    "empty file": (cut(0.0), "rank-0.safetensors has 0 bytes"),
    "half a file": (cut(0.5), r"rank-0.safetensors has \d+ bytes instead of"),
    "almost a file": (cut(0.999), r"rank-0.safetensors has \d+ bytes instead of"),
    "a bit of a weight": (flip("rank-0.safetensors", -1), "the content of rank-0.safetensors has changed"),
    "a bit of the header": (flip("rank-0.safetensors", 20), "the content of rank-0.safetensors has changed"),
    "a bit of the shape": (flip("config.json", 5), "the content of config.json has changed"),
    "another step": (change_state, "checkpoint.json is damaged"),
    "garbage": (write("checkpoint.json", b"\xff\x00"), "cannot be read"),
    "no object": (write("checkpoint.json", b"[]"), "checkpoint.json is damaged"),
    "another object": (write("checkpoint.json", b"{}"), "checkpoint.json is damaged"),
    "no tensors": (lambda path: (path / "rank-0.safetensors").unlink(), "No such file .*rank-0.safetensors"),
    "no json": (lambda path: (path / "checkpoint.json").unlink(), "No such file .*checkpoint.json"),
    "a file": (make_a_file, "Not a directory"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_named_deleted_and_passed_over(tmp_path, capsys, name):
    damage, words = DAMAGE[name]
    for step in (1, 2, 3):
        save(tmp_path, step)
    damage(tmp_path / "step-3")
    with pytest.raises(UserError, match=words):
        read_weights(tmp_path / "step-3")
    assert value(tmp_path, make(tmp_path).latest()) == 2
    shown = capsys.readouterr().out
    assert shown.startswith("passing over a damaged checkpoint: ") and "step-3" in shown and "step-2" not in shown
    assert names(tmp_path) == ["step-1", "step-2"]


def test_none_that_can_be_read(tmp_path):
    assert make(tmp_path).latest() is None
    assert make(tmp_path / "nowhere").latest() is None
    for step in (1, 2):
        save(tmp_path, step)
        cut(0.5)(tmp_path / f"step-{step}")
    assert make(tmp_path).latest() is None and names(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.a": torch.zeros(3, 2)}, r"model.a: \[2, 3\] in it, \[3, 2\] here"),
        ({"model.a": torch.zeros(6)}, r"model.a: \[2, 3\] in it, \[6\] here"),
        ({"model.c": torch.zeros(2)}, "model.c: not in the checkpoint"),
        ({"model.a": None}, "model.a: only in the checkpoint"),
        ({"optimizer.step.a": None}, "optimizer.step.a: only in the checkpoint"),
        ({f"model.{i}": torch.zeros(2) for i in range(9)}, "and 6 more"),
    ],
)
def test_another_shape_is_refused_before_anything_changes(tmp_path, change, words):
    tensors = {"model.a": torch.ones(2, 3), "model.b": torch.ones(4), "optimizer.step.a": torch.tensor(1.0)}
    checkpoints = make(tmp_path)
    checkpoints.save("step-1", 1, tensors | {"rng.0": torch.ones(4, dtype=torch.uint8)}, {})
    others = {name: tensor for name, tensor in (blank(tensors) | change).items() if tensor is not None}
    with pytest.raises(UserError, match=f"another shape, .*{words}.*delete the unfinished run or change back"):
        checkpoints.load(checkpoints.latest(), others)
    assert not any(tensor.any() for tensor in others.values())


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(launch_ranks, tmp_path_factory):
    """The folder in which two ranks have done what two_ranks.py says."""
    folder = tmp_path_factory.mktemp("ranks")
    rng = {"rng.0": torch.full((10,), 9, dtype=torch.uint8)}
    make(folder / "one").save("step-1", 1, RANKS["whole_state"]() | rng, {"from": "one"})
    codes, shown = zip(*launch_ranks(cwd=folder, setup=script(SCRIPT, folder)).wait(100), strict=True)
    assert codes == (0, -signal.SIGKILL), "\n".join(shown)
    assert shown[0].count("passing over a damaged checkpoint") == 1 and "step-2" in shown[0]
    assert "passing over" not in shown[1]
    return folder


def test_what_two_ranks_have_saved_goes_into_one(two_ranks):
    whole = RANKS["whole_state"]()
    checkpoints = make(two_ranks / "before-0")
    saved, found = checkpoints.latest(), blank(whole)
    assert (saved.step, saved.state) == (1, {"from": "two"})
    assert {"rng.0", "rng.1"} <= saved.shapes.keys()
    checkpoints.load(saved, found)
    check_equal(found, whole)
    weights = {name.removeprefix("model."): t for name, t in whole.items() if name.startswith("model.")}
    check_equal(read_weights(saved.path), weights)


def test_two_ranks_share_the_work_and_write_nothing_twice(two_ranks):
    sizes = []
    for rank in (0, 1):
        with safe_open(two_ranks / "before-0" / "step-1" / f"rank-{rank}.safetensors", "pt") as file:
            sizes.append(sum(file.get_tensor(name).nbytes for name in file.keys()))  # noqa: SIM118 (no mapping)
    assert sum(sizes) == sum(tensor.nbytes for tensor in RANKS["whole_state"]().values()) + 2 * 10
    assert min(sizes) > 0.3 * max(sizes)


def test_fsdp_on_two_ranks_and_one_process_save_the_same(two_ranks):
    wanted = RANKS["train_a_little"](RANKS["small_model"]())
    checkpoints, found = make(two_ranks / "fsdp"), blank(wanted)
    checkpoints.load(checkpoints.latest(), found)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_rank_that_was_killed_while_writing_leaves_the_one_before(two_ranks):
    root = two_ranks / "two"
    assert (root / "step-1").exists() and not (root / "step-5").exists()
    assert make(root).latest().step == 1 and names(root) == ["step-1"]
