"""Training runs inside one process: going on, stopping, the best weights, odd numbers."""

import json
import os
import signal
from functools import partial

import pytest
import torch

from mengya import runtime
from mengya.batch import Loss
from mengya.data.mixture import HeldoutPart
from mengya.data.packing import BatchSource
from mengya.errors import UserError
from mengya.metrics import read_jsonl
from mengya.train import run as training
from mengya.train.checkpoint_storage import steps_in
from mengya.train.objectives import language_modeling
from mengya.train.optimizer import Optim, freeze
from mengya.train.settings import TrainingConfig, engine_for, prepare_model

LENGTHS = [30, 3, 25, 31, 2, 12, 28, 8, 32, 17, 6, 30]
FIXED = ("step", "loss", "lr", "grad_norm", "tokens", "heldout_loss")


class Halves(BatchSource):
    """After every other step alone a checkpoint may be taken."""

    def whole(self, step):
        return step % 2 == 1


@pytest.fixture
def start(make_model, make_text, tmp_path):
    """(name, objective, **settings) -> a run in its directory, and a function that trains and gives the weights."""
    packer, heldout = make_text(LENGTHS), make_text([20, 20], seed=1)

    def make(name, objective=None, shape=(), source=BatchSource, best=("heldout_loss", "min"), **settings):
        values = {"seq_len": 32, "batch_tokens": 64, "steps": 24, "heldout_every": 5, "checkpoint_every": 4}
        values |= {"dtype": "float32", "compile": False, "optim": Optim(lr=1e-2)}
        config = TrainingConfig(**(values | settings))
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        model = make_model(**dict(shape))
        freeze(model, config.freeze)
        engine = engine_for(prepare_model(model, config), objective or language_modeling(), config)
        batches = source(packer, config.rows, config.micro_batch, config.seed)
        parts = [HeldoutPart("heldout", heldout)]
        evaluate = partial(training.heldout_loss, engine, parts, batches.rows_per_batch, 64)
        run = training.Run(engine, batches, config.steps, out, config, None, evaluate if best else None, best)

        def train():
            run.train("toy")
            return run.weights()

        return run, train

    return make


def rows(trainer):
    """What of metrics.jsonl does not depend on the clock."""
    return [{k: row[k] for k in FIXED if k in row} for row in read_jsonl(trainer.out / "metrics.jsonl")]


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.engine.model.named_parameters()}


def assert_same_run(a, b):
    assert rows(a) == rows(b)
    assert_equal(weights(a), weights(b))


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


class Crash(Exception):
    pass


def crashing(at, error=Crash):
    """An objective that raises at its call number `at`."""
    calls = iter(range(10**6))
    plain = language_modeling()

    def objective(model, batch):
        if next(calls) == at:
            raise error
        return plain(model, batch)

    return objective


@pytest.fixture
def undisturbed(start):
    trainer, run = start("undisturbed")
    run()
    return trainer


def test_metrics_have_one_row_a_step_with_the_promised_keys(undisturbed):
    found = list(read_jsonl(undisturbed.out / "metrics.jsonl"))
    assert [row["step"] for row in found] == list(range(1, 25))
    for row in found:
        assert row.keys() >= {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second"}
        assert ("heldout_loss" in row) == (row["step"] % 5 == 0 or row["step"] == 24)
        assert row["tokens"] == row["step"] * 64
    assert found[-1]["loss"] < found[0]["loss"]


@pytest.mark.parametrize("at", [0, 3, 4, 11, 26])
def test_a_crash_and_the_same_again_is_the_undisturbed_run(start, undisturbed, at):
    _, run = start("crashed", crashing(at))
    with pytest.raises(Crash):
        run()
    trainer, run = start("crashed")
    run()
    assert_same_run(trainer, undisturbed)


def test_micro_batches_and_many_crashes(start):
    whole, run = start("whole", micro_batch=1)
    run()
    for at in (9, 13, 13, 5, 17):
        _, run = start("crashed", crashing(at), micro_batch=1)
        with pytest.raises(Crash):
            run()
    trainer, run = start("crashed", micro_batch=1)
    run()
    assert_same_run(trainer, whole)


def test_a_signal_stops_after_the_step_and_the_same_again_goes_on(start, undisturbed, capsys):
    plain, calls = language_modeling(), iter(range(1000))

    def objective(model, batch):
        if next(calls) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(model, batch)

    _, run = start("stopped", objective)
    with pytest.raises(KeyboardInterrupt):
        run()
    trainer, run = start("stopped")
    stopped = len(rows(trainer))
    assert stopped % 4 and stopped < 24
    run()
    assert f"going on after step {stopped}" in capsys.readouterr().out
    assert_same_run(trainer, undisturbed)


def test_a_truncated_newest_checkpoint_costs_steps_but_no_bits(start, undisturbed, capsys):
    trainer, run = start("cut", crashing(13))
    with pytest.raises(Crash):
        run()
    found = steps_in(trainer.out / "checkpoints")
    assert [path.stem for path in found] == ["step-4", "step-8"]
    (file,) = found[1].glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    trainer, run = start("cut")
    run()
    shown = capsys.readouterr().out
    assert "step-8" in shown and "going on after step 4" in shown
    assert_same_run(trainer, undisturbed)


def test_no_readable_checkpoint_means_from_the_beginning(start, undisturbed):
    trainer, run = start("cut", crashing(13))
    with pytest.raises(Crash):
        run()
    for path in (trainer.out / "checkpoints").glob("*/*"):
        path.write_bytes(b"")
    trainer, run = start("cut")
    run()
    assert_same_run(trainer, undisturbed)


def test_checkpoints_are_rotated(start):
    for keep in (1, 3):
        trainer, run = start(f"keep-{keep}", keep_checkpoints=keep)
        run()
        names = [path.stem for path in steps_in(trainer.out / "checkpoints")]
        assert names == ["step-16", "step-20", "step-24"][-keep:]


def test_the_best_weights_are_taken(start, monkeypatch, capsys):
    losses = iter([float("nan"), 1.0, 2.0, float("nan"), 1.5])
    monkeypatch.setattr(training, "measure", lambda *_: next(losses))
    _, run = start("best")
    best = run()
    assert "taking the weights of step 10" in capsys.readouterr().out
    again, run = start("again", steps=24, heldout_every=10**6)
    seen = {}
    log = training.MetricsLog.write

    def remember(self, row):
        if row["step"] == 10:
            seen["weights"] = weights(again)
        log(self, row)

    monkeypatch.setattr(training.MetricsLog, "write", remember)
    monkeypatch.setattr(training, "measure", lambda *_: 1.0)
    run()
    assert_equal(best, seen["weights"])


def test_best_weights_that_cannot_be_read_leave_the_last(start, monkeypatch, capsys):
    measured = iter([1.0, 2.0, 2.0, 2.0, 2.0])
    trainer, run = start("best")

    def measure(*_):
        for path in (trainer.out / "checkpoints").glob("best/*"):
            path.write_bytes(b"")
        return next(measured)

    monkeypatch.setattr(training, "measure", measure)
    run()
    assert "keeping the last weights" in capsys.readouterr().out


def test_heldout_loss_that_is_never_a_number_ends_with_the_last_weights(start, monkeypatch):
    monkeypatch.setattr(training, "measure", lambda *_: float("nan"))
    trainer, run = start("nan")
    run()
    assert rows(trainer)[-1]["heldout_loss"] is None


def test_skipped_steps_are_logged_as_valid_json(start):
    plain, calls = language_modeling(), iter(range(1000))

    def objective(model, batch):
        loss = plain(model, batch)
        return Loss(loss.total * (float("nan") if next(calls) == 2 else 1.0), loss.metrics)

    trainer, run = start("nan", objective)
    run()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (trainer.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [row["step"] for row in found if "skipped" in row] == [3]
    assert found[2]["loss"] is None and found[2]["grad_norm"] is None


def test_another_shape_or_a_context_that_is_too_short(start, make_model):
    _, run = start("shape", crashing(9))
    with pytest.raises(Crash):
        run()
    _, run = start("shape", shape={"hidden_size": 64})
    with pytest.raises(UserError, match="another shape"):
        run()
    with pytest.raises(UserError, match="seq_len=128 is longer than the model's context of 64"):
        start("long", seq_len=128, batch_tokens=128)


def test_without_a_measurement_the_last_weights_are_taken(start, undisturbed):
    trainer, run = start("plain", best=None)
    assert_equal(run(), weights(undisturbed))
    assert not any("heldout_loss" in row for row in rows(trainer))


def test_the_highest_figure_may_be_the_best(start, monkeypatch, capsys):
    losses = iter([1.0, 3.0, 2.0, 1.0, 1.0])
    monkeypatch.setattr(training, "measure", lambda *_: next(losses))
    _, run = start("highest", best=("heldout_loss", "max"))
    run()
    assert "taking the weights of step 10" in capsys.readouterr().out


def test_a_checkpoint_waits_until_the_source_is_whole(start, undisturbed):
    trainer, run = start("halves", crashing(15), source=Halves, checkpoint_every=3, keep_checkpoints=9)
    with pytest.raises(Crash):
        run()
    assert [path.name for path in steps_in(trainer.out / "checkpoints")] == ["step-4", "step-6", "step-10", "step-12"]
    trainer, run = start("halves", source=Halves, checkpoint_every=3)
    run()
    assert_same_run(trainer, undisturbed)


def test_a_signal_waits_for_a_whole_step_too(start):
    plain, calls = language_modeling(), iter(range(1000))

    def objective(model, batch):
        if next(calls) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(model, batch)

    trainer, run = start("stopped", objective, source=Halves)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert trainer.done % 2 == 0 and len(rows(trainer)) == trainer.done < 24
    assert steps_in(trainer.out / "checkpoints")[-1].name == f"step-{trainer.done}"


def test_frozen_weights_are_not_in_the_checkpoints_and_a_run_with_them_goes_on(start):
    patterns = ["*embed_tokens*", "model.layers.0.*"]
    whole, run = start("frozen", freeze=patterns)
    before = weights(whole)
    best = run()
    trained = [n for n in before if not n.startswith(("model.embed_tokens", "model.layers.0."))]
    assert sorted(best) == sorted(trained) and trained
    path = steps_in(whole.out / "checkpoints")[-1]
    held = json.loads((path / "checkpoint.json").read_text())["shapes"]
    assert sorted(n for n in held if n.startswith("model.")) == sorted(f"model.{n}" for n in trained)
    size = sum(before[n].numel() for n in trained)
    assert (path / "rank-0.safetensors").stat().st_size < 3 * 4 * size + 20_000
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, before[name]) == (name not in trained), name
    _, run = start("crashed", crashing(11), freeze=patterns)
    with pytest.raises(Crash):
        run()
    again, run = start("crashed", freeze=patterns)
    run()
    assert_same_run(again, whole)


def test_settings_that_cannot_be(make_model):
    positive = ("seq_len", "batch_tokens", "heldout_every", "heldout_rows", "checkpoint_every", "keep_checkpoints")
    for name in positive:
        with pytest.raises(ValueError, match=rf"{name}\n.* greater than or equal to 1 .*input_value=0"):
            TrainingConfig(**{name: 0})
    for name in ("micro_batch", "steps", "seed"):
        with pytest.raises(ValueError, match=rf"{name}\n.* greater than or equal to 0 .*input_value=-1"):
            TrainingConfig(**{name: -1})
    for value in (0.0, -1.0):
        with pytest.raises(ValueError, match=rf"epochs\n.* greater than 0 .*input_value={value}"):
            TrainingConfig(epochs=value)
    with pytest.raises(ValueError, match="batch_tokens=1000 is not a multiple of seq_len=512; try 1024"):
        TrainingConfig(batch_tokens=1000, seq_len=512)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("lr", 0.0), ("lr", -1.0)),
        *(("eps", 0.0), ("max_grad_norm", 0.0), ("warmup", -0.5), ("decay", -0.1), ("min_lr", 2.0)),
        *(("weight_decay", -1.0), ("betas", (0.9, 1.0)), ("betas", (-0.1, 0.9))),
    ],
)
def test_optimizer_settings_that_cannot_be(key, value):
    with pytest.raises(ValueError, match=rf"{key}.*\n.* (greater|less) than "):
        Optim(**{key: value})


def test_killed_after_the_last_step_it_goes_straight_to_the_end(start, undisturbed):
    again, run = start("undisturbed", lambda *_: pytest.fail("a step was taken again"))
    run()
    assert_same_run(again, undisturbed)


def noted_saves(monkeypatch):
    """A list of the checkpoints that are saved, by name."""
    names, save = [], training.Checkpoints.save

    def noted(self, name, *arguments, **options):
        names.append(name)
        save(self, name, *arguments, **options)

    monkeypatch.setattr(training.Checkpoints, "save", noted)
    return names


def test_a_step_checkpoint_that_is_the_best_is_not_written_twice(start, monkeypatch):
    """Nor does it wait for another one: it stays until the weights are used."""
    saved = noted_saves(monkeypatch)
    figures = iter([3.0, 1.0, 2.0, 2.5, 4.0, 5.0])
    trainer, run = start("same", heldout_every=4, checkpoint_every=4, keep_checkpoints=1)
    monkeypatch.setattr(trainer, "_evaluate", lambda: {"heldout_loss": next(figures)})
    found = run()
    assert saved == [f"step-{step}" for step in (4, 8, 12, 16, 20, 24)]
    assert [path.name for path in steps_in(trainer.out / "checkpoints")] == ["step-8", "step-24"]
    assert trainer.best_step == 8 and found.keys()


def test_the_best_of_a_step_checkpoint_outlives_a_resumption(start, monkeypatch):
    def train(name, stop_at):
        figures = dict(zip(range(4, 25, 4), [3.0, 1.0, 2.0, 2.5, 4.0, 5.0], strict=True))
        objective = crashing(stop_at) if stop_at else None
        trainer, run = start(name, objective, heldout_every=4, checkpoint_every=4, keep_checkpoints=1)
        monkeypatch.setattr(trainer, "_evaluate", lambda: {"heldout_loss": figures[trainer.done]})
        return run

    wanted = train("whole", 0)()
    with pytest.raises(Crash):
        train("crashed", 18)()
    assert_equal(train("crashed", 0)(), wanted)


def test_what_was_not_measured_is_never_best(start, monkeypatch):
    trainer, run = start("none", heldout_every=4, checkpoint_every=4)
    monkeypatch.setattr(trainer, "_evaluate", lambda: {"heldout_loss": float("nan")})
    assert_equal(run(), weights(trainer))
    assert trainer.best is None


def test_the_log_is_on_the_disk_before_a_checkpoint_says_that_its_steps_are_done(start, monkeypatch):
    events = noted_saves(monkeypatch)
    trainer, run = start("log")
    flush = training.MetricsLog.flush
    monkeypatch.setattr(training.MetricsLog, "flush", lambda self: events.append(trainer.done) or flush(self))
    run()
    checkpoints = [number for number, event in enumerate(events) if str(event).startswith("step-")]
    assert checkpoints and all(f"step-{events[number - 1]}" == events[number] for number in checkpoints)


@pytest.mark.parametrize(("warmup", "said"), [(6, True), (3, False), (0.9, False)])
def test_a_warmup_that_is_longer_than_the_training_is_said(start, capsys, warmup, said):
    trainer, train = start("short", steps=3, optim=Optim(lr=1e-2, warmup=warmup))
    train()
    assert ("warmup is 6 steps of 3: the rate ends at 50% of optim.lr" in capsys.readouterr().out) == said
    assert (max(row["lr"] for row in rows(trainer)) < 0.0051) == said


def test_weights_that_no_gradient_reaches_are_named(start, capsys):
    def without_last_layer(model, batch):
        loss = language_modeling()(model, batch)
        return loss._replace(total=loss.total + 0 * sum(p.sum() for p in model.parameters()))

    trainer, run = start("deaf", without_last_layer)
    for layer in trainer.engine.model.blocks():
        layer.mlp.down_proj.weight.register_hook(lambda gradient: gradient * 0)
    run()
    named = [line for line in capsys.readouterr().out.splitlines() if "no gradient" in line]
    assert named == [
        "  no gradient has reached model.layers.*.mlp.down_proj.weight (2) in 10 steps: they are not trained"
    ]
    start("fine")[1]()
    assert "no gradient" not in capsys.readouterr().out


def test_weights_whose_gradient_is_not_a_number_are_named(start):
    trainer, run = start("wild")
    weight = trainer.engine.model.blocks()[1].mlp.down_proj.weight
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match=r"not finite in model.layers.1.mlp.down_proj.weight"):
        run()


@pytest.mark.parametrize(
    ("dtype", "rows", "micro_batch", "processes", "at_once"),
    [
        ("float32", 8, 0, 1, 4),
        ("bfloat16", 8, 0, 1, 8),
        ("float32", 8, 8, 1, 8),
        ("float32", 8, 0, 4, 2),
        ("float32", 10, 0, 1, 2),
        ("float32", 7, 0, 1, 1),
        ("float32", 4, 16, 1, 4),
    ],
)
def test_rows_in_one_forward_pass(monkeypatch, dtype, rows, micro_batch, processes, at_once):
    """On a CPU; the largest divisor of a process's rows that has at most 2,048 tokens, if the recipe leaves it open."""
    monkeypatch.setattr(runtime, "pick_device", lambda: "cpu")
    settings = TrainingConfig(seq_len=512, batch_tokens=512 * rows, micro_batch=micro_batch, dtype=dtype)
    assert settings.rows_at_once(processes) == at_once
