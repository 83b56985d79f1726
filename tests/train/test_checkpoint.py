"""Checkpoints: bitwise, whole or not at all, rotated, and without pickles."""

import builtins
import contextlib
import os
import resource

import pytest
import torch

from mengya.errors import UserError
from mengya.train import checkpoint
from mengya.train.checkpoint import (
    Checkpoint,
    capture,
    load,
    load_latest,
    paths,
    restore,
    restore_weights,
    rotate,
    save,
)
from mengya.train.optimizer import make_adamw


def adamw(model):
    return make_adamw(model, 1e-2, (0.9, 0.95), 1e-8, 0.1)


def steps(model, optimizer, count):
    """Updates that depend on weights, moments and random state alike."""
    for _ in range(count):
        ids = torch.randint(50, (2, 16))
        model(ids).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def bits(model, optimizer):
    found = {n: p.detach().clone() for n, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        found |= {f"{name}/{key}": t.clone() for key, t in optimizer.state.get(parameter, {}).items()}
    return found | {"rng": torch.get_rng_state()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def small(step=1, value=0.0, **state):
    return Checkpoint(step, {"model.x": torch.full((1000,), value), "rng": torch.get_rng_state()}, state)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_round_trip_is_bitwise_and_goes_on_bitwise(make_model, tmp_path, tied, frozen):
    def build():
        model = make_model(tie_word_embeddings=tied, attention_bias=True)
        model.model.embed_tokens.weight.requires_grad_(not frozen)
        return model, adamw(model)

    model, optimizer = build()
    torch.manual_seed(5)
    steps(model, optimizer, 3)
    state = {"best": 0.1 + 0.2, "guard": {"mean_norm": 1 / 3}, "none": None}
    save(capture(model, optimizer, 3, state), tmp_path / "step-3.safetensors")
    saved = bits(model, optimizer)
    steps(model, optimizer, 4)
    wanted = bits(model, optimizer)

    torch.manual_seed(99)
    model, optimizer = build()
    found = load(tmp_path / "step-3.safetensors")
    restore(found, model, optimizer)
    assert (found.step, found.state) == (3, state)
    assert_equal(bits(model, optimizer), saved)
    steps(model, optimizer, 4)
    assert_equal(bits(model, optimizer), wanted)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_the_whole_state_goes_to_the_device_of_the_weights(make_model, tmp_path):
    model = make_model(tie_word_embeddings=False)
    optimizer = adamw(model)
    steps(model, optimizer, 1)
    save(capture(model, optimizer, 1, {}), tmp_path / "step-1.safetensors")
    elsewhere = make_model(tie_word_embeddings=False).to("meta")
    other = torch.optim.AdamW(elsewhere.parameters())
    restore(load(tmp_path / "step-1.safetensors"), elsewhere, other)
    found = [t for p in elsewhere.parameters() for t in other.state[p].values()]
    assert len(found) == 3 * len(list(elsewhere.parameters())) and {t.device.type for t in found} == {"meta"}


def test_a_checkpoint_before_the_first_step(make_model, tmp_path):
    model = make_model()
    save(capture(model, adamw(model), 0, {}), tmp_path / "step-0.safetensors")
    other, optimizer = make_model(1), None
    optimizer = adamw(other)
    restore(load(tmp_path / "step-0.safetensors"), other, optimizer)
    assert_equal(dict(other.named_parameters()), dict(model.named_parameters()))
    assert not optimizer.state


def operations(monkeypatch, fail_at, after):
    """Make the file operation number `fail_at` of a save raise, before or `after` it was done. Returns the counter."""
    count = [0]

    def wrap(owner, name):
        real = getattr(owner, name)

        def call(*arguments, **named):
            count[0] += 1
            if count[0] == fail_at and not after:
                raise OSError(5, "injected")
            result = real(*arguments, **named)
            if count[0] == fail_at:
                raise OSError(5, "injected")
            return result

        monkeypatch.setattr(owner, name, call, raising=False)

    monkeypatch.setattr(checkpoint, "open", builtins.open, raising=False)
    for owner, name in ((checkpoint, "save_file"), (checkpoint, "open"), (os, "fsync"), (os, "replace"), (os, "open")):
        wrap(owner, name)
    return count


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("same_name", [False, True])
def test_a_failure_at_any_moment_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, same_name, after):
    name = "step-1.safetensors" if same_name else "step-2.safetensors"
    outcomes = []
    for fail_at in range(1, 20):
        root = tmp_path / str(fail_at)
        root.mkdir()
        save(small(1, 1.0), root / "step-1.safetensors")
        with monkeypatch.context() as patch:
            count = operations(patch, fail_at, after)
            failed = True
            with contextlib.suppress(OSError):
                save(small(2, 2.0), root / name)
                failed = False
        if not failed:
            break
        assert count[0] == fail_at
        found = load_latest(root)
        assert found.step in (1, 2) and (found.tensors["model.x"] == found.step).all()
        assert all(path.suffix == ".safetensors" for path in root.iterdir()), "something was left behind"
        outcomes.append(found.step)
    assert not failed and fail_at > 5 and outcomes[0] == 1, outcomes
    assert sorted(outcomes) == outcomes


def test_what_a_killed_save_left_is_no_checkpoint_and_is_no_obstacle(tmp_path):
    (tmp_path / ".step-2.safetensors.partial").write_bytes(b"half")
    assert load_latest(tmp_path) is None and paths(tmp_path) == []
    save(small(2), tmp_path / "step-2.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["step-2.safetensors"]


def test_a_full_disk_is_an_error_of_the_system_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "step-1.safetensors"
    save(small(1, 1.0), path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the nearest to a full disk that needs no rights
    try:
        with pytest.raises(OSError) as caught:
            save(small(2, 2.0), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno is not None and str(path) == caught.value.filename
    assert load(path).step == 1 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_checkpoint_is_passed_over(tmp_path, capsys, share):
    for step in (1, 2, 3):
        save(small(step, float(step)), tmp_path / f"step-{step}.safetensors")
    newest = tmp_path / "step-3.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"step-3.* cannot be read"):
        load(newest)
    assert load_latest(tmp_path).step == 2
    assert "step-3" in capsys.readouterr().out
    assert [path.name for path in paths(tmp_path)] == ["step-1.safetensors", "step-2.safetensors"]


def test_none_that_can_be_read(tmp_path):
    for step in (1, 2):
        (tmp_path / f"step-{step}.safetensors").write_bytes(b"\0" * 100)
    assert load_latest(tmp_path) is None
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "best.safetensors")


def test_weights_of_something_else_are_no_checkpoint(make_model, tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(3)}, tmp_path / "step-1.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "step-1.safetensors")


def test_rotation_keeps_the_newest_by_number(tmp_path):
    for step in (2, 10, 9, 100):
        save(small(step), tmp_path / f"step-{step}.safetensors")
    save(small(1), tmp_path / "best.safetensors")
    rotate(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.safetensors",
        "step-10.safetensors",
        "step-100.safetensors",
    ]
    rotate(tmp_path, 5)
    assert load_latest(tmp_path).step == 100 and len(paths(tmp_path)) == 2


@pytest.mark.parametrize(
    "change", [{"hidden_size": 64}, {"num_hidden_layers": 3}, {"vocab_size": 51}, {"qk_norm": True}]
)
def test_another_shape_is_refused(make_model, tmp_path, change):
    model = make_model()
    save(capture(model, adamw(model), 1, {}), tmp_path / "step-1.safetensors")
    other = make_model(1, **change)
    before = {n: p.detach().clone() for n, p in other.named_parameters()}
    for call in (lambda c: restore(c, other, adamw(other)), lambda c: restore_weights(c, other)):
        with pytest.raises(UserError, match="another shape"):
            call(load(tmp_path / "step-1.safetensors"))
    assert_equal(before, {n: p.detach() for n, p in other.named_parameters()})


def test_no_pickles(make_model, tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("pickle")

    monkeypatch.setattr("pickle.Pickler", forbidden)
    monkeypatch.setattr("pickle.dump", forbidden)
    monkeypatch.setattr("pickle.dumps", forbidden)
    monkeypatch.setattr("torch.save", forbidden)
    monkeypatch.setattr("torch.load", forbidden)
    model = make_model()
    optimizer = adamw(model)
    steps(model, optimizer, 1)
    path = tmp_path / "step-1.safetensors"
    save(capture(model, optimizer, 1, {}), path)
    restore(load(path), model, optimizer)
    assert path.read_bytes()[8:9] == b"{", "a safetensors header"
