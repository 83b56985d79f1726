"""Two processes equal one, whatever the engine; any engine goes on with what any other left.

Tolerances are relative and for float32: the order of sums differs between one and two processes, and from step to step
AdamW makes that a little larger.
"""

import importlib.util
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mengya.metrics import read_jsonl

from ..conftest import script

missing = importlib.util.find_spec("deepspeed") is None
pytestmark = pytest.mark.skipif(missing, reason="pip install 'mengya[deepspeed]'")

SCRIPT = Path(__file__).parent / "engines.py"
ENGINES = runpy.run_path(str(SCRIPT))
STEPS, train = ENGINES["STEPS"], ENGINES["train"]
TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def folder(launch_ranks, tmp_path_factory):
    """Where one process and then two have trained."""
    folder = tmp_path_factory.mktemp("engines")
    ENGINES["write_shards"](folder)
    train(folder, "chain", None, 1, trouble=False, checkpoint_every=1)
    ended = launch_ranks(cwd=folder, setup=script(SCRIPT, folder)).wait()
    assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)
    assert not ended[1][1].strip(), f"rank 1 must be silent: {ended[1][1]}"
    train(folder, "one", None)
    train(folder, "one-calm", None, trouble=False)
    train(folder, "one-pairs", None, trouble=False, pairs=True)
    train(folder, "one-muon", None, trouble=False, optim=ENGINES["WITH_MUON"])
    train(folder, "one-frozen", None, trouble=False, **ENGINES["FROZEN"])
    train(folder, "chain", None, trouble=False, checkpoint_every=1)
    return folder


def rows(folder, name):
    return list(read_jsonl(folder / name / "metrics.jsonl"))


def assert_same(folder, name, reference, tolerance=TOLERANCE):
    found, expected = rows(folder, name), rows(folder, reference)
    assert [row["step"] for row in found] == [row["step"] for row in expected] == list(range(1, STEPS + 1))
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - {"tokens_per_second", "skipped"}:
            wanted = other[key] if other[key] is None else pytest.approx(other[key], rel=tolerance, abs=1e-7)
            assert row[key] == wanted, (key, row["step"])
    weights, others = (load_file(folder / n / "best.safetensors") for n in (name, reference))
    assert weights.keys() == others.keys()
    for key, tensor in weights.items():
        assert torch.allclose(tensor, others[key], rtol=1e-3, atol=1e-4), key


@pytest.mark.parametrize("engine", list(ENGINES["ENGINES"]))
def test_two_processes_train_as_one(folder, engine):
    assert_same(folder, engine, "one")


@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
def test_preference_pairs_too(folder, engine):
    assert_same(folder, f"{engine}-pairs", "one-pairs", 1e-4)


@pytest.mark.parametrize("engine", ENGINES["MUON"])
def test_muon_on_whole_matrices_too(folder, engine):
    """Stopped once on the way: its momentum is in the checkpoint, whole or in parts."""
    assert_same(folder, f"{engine}-muon", "one-muon", 1e-4)


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero2", "zero3"])
def test_frozen_weights_groups_and_recomputed_blocks_too(folder, engine):
    """Stopped once on the way: what is frozen is in no checkpoint."""
    assert_same(folder, f"{engine}-frozen", "one-frozen", 2e-5)
    weights = load_file(folder / f"{engine}-frozen" / "best.safetensors")
    assert weights and not any("embed_tokens" in name or "layers.0." in name for name in weights)


@pytest.mark.parametrize("engine", list(ENGINES["ENGINES"]))
def test_a_nan_in_one_rank_or_a_spike_skips_the_step_everywhere(folder, engine):
    skipped = {row["step"]: row["skipped"] for row in rows(folder, engine) if "skipped" in row}
    assert list(skipped) == [3, 6]
    assert "of rank 1" in skipped[3] and "x its mean" in skipped[6]


def test_every_engine_goes_on_with_what_another_left(folder):
    assert_same(folder, "chain", "one-calm")
