"""The loop: accumulation, clipping, the guard; and every objective learns a toy."""

import dataclasses
import math

import pytest
import torch

from mengya.batch import Loss, Metric, Source
from mengya.data.packing import BatchSource
from mengya.errors import UserError
from mengya.train.engines.single import Engine
from mengya.train.loop import Guard, fit, measure
from mengya.train.objectives import dpo, language_modeling
from mengya.train.optimizer import Optim, parameter_groups

LENGTHS = [30, 3, 25, 31, 2, 12, 28, 8, 32, 17, 6, 30]


SGD = Optim(lr=0.1, weight_decay=0.0)


def make_engine(model, objective, optim=Optim(lr=1e-2), sgd=False):  # noqa: B008  frozen
    """`sgd`: unlike Adam, it shows the gradient's scale."""
    engine = Engine(model, objective, optim)
    if sgd:
        engine.optimizers = [torch.optim.SGD(parameter_groups(model, optim))]
    return engine


def train(model, objective, source, steps=3, optim=Optim(lr=1e-2), clip=1.0, guard=None, sgd=False):  # noqa: B008
    engine = make_engine(model, objective, optim, sgd)
    return list(fit(engine, lambda _: 1.0, source, range(steps), clip, guard or Guard()))


def copy(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def largest_difference(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("kind", ["language_modeling", "dpo"])
def test_accumulation_equals_the_full_batch_for_unequal_masks(make_model, make_groups, kind):
    group = 1 if kind == "language_modeling" else 2
    packer = make_groups([n // group for n in LENGTHS], group=group)
    assert len(packer) >= 4
    counts = [batch.count for batch in BatchSource(packer, 4, 1, 0)(0)]
    assert len(set(counts)) > 1, "the micro-batches must differ for the test to mean anything"
    found = []
    for size in (4, 2, 1):
        model = make_model()
        objective = language_modeling() if group == 1 else dpo(0.5, make_model(1).requires_grad_(False))
        rows = train(model, objective, BatchSource(packer, 4, size, 0), optim=SGD, sgd=True, clip=1e9)
        found.append((rows, copy(model)))
    for rows, weights in found[1:]:
        for (_, metrics), (_, wanted) in zip(rows, found[0][0], strict=True):
            assert metrics == pytest.approx(wanted, rel=1e-4)
        assert largest_difference(weights, found[0][1]) < 1e-5
    assert largest_difference(found[0][1], copy(make_model())) > 1e-2


def test_loss_and_norm_are_per_supervised_token(make_model, make_groups):
    model, packer = make_model(), make_groups(LENGTHS)
    source = BatchSource(packer, 4, 2, 0)
    batches = source(0)
    objective = language_modeling()
    totals = [objective(model, batch).total for batch in batches]
    mean = sum(totals) / sum(batch.count for batch in batches)
    mean.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    ((step, metrics),) = train(make_model(), objective, source, steps=1)
    assert step == 0
    assert metrics["loss"] == pytest.approx(float(mean.detach()), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["tokens"] == 4 * 32 and metrics["lr"] == 1e-2


@pytest.mark.parametrize("most", [0.01, 0.5, 1e6])
def test_clipping_bounds_the_update(make_model, make_groups, most):
    model = make_model()
    before = copy(model)
    source = BatchSource(make_groups(LENGTHS), 4, 4, 0)
    optim = Optim(lr=1.0, weight_decay=0.0)
    ((_, metrics),) = train(model, language_modeling(), source, 1, optim, clip=most, sgd=True)
    moved = math.sqrt(sum(float((p - before[n]).double().square().sum()) for n, p in copy(model).items()))
    assert moved == pytest.approx(min(most, metrics["grad_norm"]), rel=1e-3)


def test_the_schedule_scales_the_rate(make_model, make_groups):
    source = BatchSource(make_groups(LENGTHS), 2, 2, 0)
    engine = make_engine(make_model(), language_modeling())
    rows = fit(engine, lambda s: s / 4, source, range(2, 5), 1.0, Guard())
    rates = [(step, metrics["lr"], engine.optimizers[0].param_groups[0]["lr"]) for step, metrics in rows]
    assert rates == [(2, 0.005, 0.005), (3, 0.0075, 0.0075), (4, 0.01, 0.01)]


def test_a_metric_brings_its_own_divisor(make_model, make_groups):
    """Rewards, say, are counted by completion and not by token; micro-batches have unequally many."""
    plain, seen = language_modeling(), []

    def objective(model, batch):
        loss = plain(model, batch)
        number = len(seen)
        seen.append(batch.count)
        metrics = {
            "reward": Metric(torch.tensor(10.0 * (number + 1)), number + 1),
            "spread": Metric(torch.tensor(6.0), torch.tensor(4.0)),
            "tokens_seen": Metric(torch.tensor(float(batch.count))),
            "nothing": Metric(torch.tensor(0.0), 0),
            "load": Metric(torch.ones(2, 3), None),
        }
        return Loss(loss.total, metrics)

    ((_, found),) = train(make_model(), objective, BatchSource(make_groups(LENGTHS), 4, 1, 0), steps=1)
    assert len(set(seen)) > 1
    assert found["reward"] == (10 + 20 + 30 + 40) / (1 + 2 + 3 + 4) and found["spread"] == 1.5
    assert found["tokens_seen"] == 1.0 and math.isnan(found["nothing"]) and found["load"] == [[4.0] * 3] * 2


class Live(Source):
    """Batches that depend on the weights, as rollouts do."""

    ahead = 0

    def __init__(self, model, inner):
        self._model, self._inner, self.norms = model, inner, []

    def __call__(self, step):
        self.norms.append(float(self._model.output_weight.detach().norm()))
        extra = {"advantages": torch.full((1,), self.norms[-1])}
        return [dataclasses.replace(batch, extra=extra) for batch in self._inner(step)]


def test_a_source_of_the_live_policy_is_asked_after_the_update_before(make_model, make_groups):
    model, plain, seen = make_model(), language_modeling(), []

    def objective(model, batch):
        seen.append(float(batch.extra["advantages"]))
        return plain(model, batch)

    source = Live(model, BatchSource(make_groups(LENGTHS), 2, 2, 0))
    after = [float(model.output_weight.detach().norm())]
    for _ in fit(make_engine(model, objective), lambda _: 1.0, source, range(4), 1.0, Guard()):
        after.append(float(model.output_weight.detach().norm()))
    assert len(set(after)) == 5 and source.norms == seen == after[:-1]


def poisoned(objective, bad_steps, value):
    """`objective`, but at these calls loss (and so the gradients) is multiplied by `value`."""
    calls = iter(range(10**6))

    def poison(model, batch):
        loss = objective(model, batch)
        return Loss(loss.total * value, loss.metrics) if next(calls) in bad_steps else loss

    return poison


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_no_number_changes_nothing(make_model, make_groups, value):
    model = make_model()
    guard = Guard()
    source = BatchSource(make_groups(LENGTHS), 4, 4, 0)
    engine = make_engine(model, poisoned(language_modeling(), {2, 3}, value))
    rows = fit(engine, lambda _: 1.0, source, range(6), 1.0, guard)
    history = [(copy(model), None)]
    states = []
    for _, metrics in rows:
        history.append((copy(model), metrics))
        states.append({n: t.clone() for n, t in engine.optimizers[0].state[model.lm_head.weight].items()})
    for step, (weights, metrics) in enumerate(history[1:]):
        changed = largest_difference(weights, history[step][0]) > 0
        assert changed == (step not in (2, 3)) and ("skipped" in metrics) != changed
        assert all(p.isfinite().all() for p in weights.values())
    assert all(torch.equal(states[1][name], states[3][name]) for name in states[1]), "the moments were touched"
    assert guard.skips == 0 and guard.seen == 4


def test_many_skips_in_a_row_end_the_run(make_model, make_groups):
    objective = poisoned(language_modeling(), set(range(3, 100)), math.nan)
    source = BatchSource(make_groups(LENGTHS), 4, 4, 0)
    with pytest.raises(UserError, match=r"4 steps in a row .* lower optim.lr"):
        train(make_model(), objective, source, 50, guard=Guard(most_skips=4))


def test_a_spike_is_skipped_after_the_warmup_only(make_model, make_groups):
    source = BatchSource(make_groups(LENGTHS), 4, 4, 0)
    for step, skipped in ((2, False), (8, True)):
        objective = poisoned(language_modeling(), {step}, 1e4)
        rows = train(make_model(), objective, source, 10, guard=Guard(warmup=5))
        assert [n for n, metrics in rows if "skipped" in metrics] == ([step] if skipped else [])
    assert "over 20 x its mean" in rows[8][1]["skipped"]


def test_the_mean_norm_forgets_slowly():
    guard = Guard(warmup=2)
    assert [guard.verdict(1.0, norm) for norm in (1.0, 3.0)] == [None, None]
    assert guard.mean_norm == 2.0
    assert guard.verdict(1.0, 41.0) and guard.skips == 1 and guard.mean_norm == 2.0
    assert guard.verdict(1.0, 39.0) is None and guard.skips == 0


def test_measure_is_the_mean_and_leaves_the_model_alone(make_model, make_groups, whole):
    model, batch = make_model(), whole(make_groups(LENGTHS))
    before = copy(model)
    objective = language_modeling()
    found = measure(make_engine(model, objective), iter([batch, batch]))
    assert found == pytest.approx(float(objective(model, batch).total.detach()) / batch.count, rel=1e-6)
    assert model.training and largest_difference(copy(model), before) == 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("qk_norm", [False, True])
def test_pretraining_learns_a_toy_by_heart(make_model, make_text, qk_norm):
    model = make_model(initializer_range=0.02, qk_norm=qk_norm)
    source = BatchSource(make_text([24], seq_len=26), 1, 1, 0)
    rows = train(model, language_modeling(), source, 150)
    assert rows[0][1]["loss"] > 3.5
    assert rows[-1][1]["loss"] < 0.02


def test_fine_tuning_learns_a_toy_by_heart(make_model, make_groups):
    model = make_model(initializer_range=0.02)
    rows = train(model, language_modeling(), BatchSource(make_groups([12, 20]), 1, 1, 0), 150)
    assert rows[-1][1]["loss"] < 0.02


def test_dpo_learns_a_toy_by_heart(make_model, make_groups):
    reference = make_model().requires_grad_(False)
    source = BatchSource(make_groups([10, 9, 8, 12, 7, 15], group=2), 2, 2, 0)
    model = make_model()
    rows = train(model, dpo(0.1, reference), source, 80, Optim(lr=3e-3))
    assert rows[0][1]["loss"] == pytest.approx(math.log(2), rel=1e-3)
    assert rows[-1][1]["accuracy"] == 1.0 and rows[-1][1]["loss"] < 0.02
    assert rows[-1][1]["reward_chosen"] > rows[-1][1]["reward_rejected"]
