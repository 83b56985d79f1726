"""Learning-rate schedules at their corners."""

import itertools
import math

import pytest

from mengya.train.optimizer import Optim, make_schedule, warmup_steps


def values(kind, steps=100, warmup=0.1, decay=0.2, floor=0.1):
    schedule = make_schedule(Optim(schedule=kind, warmup=warmup, decay=decay, min_lr=floor), steps)
    return [schedule(step) for step in range(steps)]


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_rises_linearly_to_one_and_ends_at_the_floor(kind):
    found = values(kind)
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert found[-1] == pytest.approx(0.1)
    assert max(found) == 1.0
    assert all(a >= b for a, b in itertools.pairwise(found[9:]))


def test_cosine_is_half_a_cosine():
    found = values("cosine")
    assert found[54] == pytest.approx(0.55)  # half way between 1 and the floor
    for step in range(10, 100):
        assert found[step] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * (step - 9) / 90)))


def test_wsd_is_flat_then_falls_linearly():
    found = values("wsd")
    assert set(found[9:80]) == {1.0}
    assert found[80:] == pytest.approx([1 - 0.9 * (i + 1) / 20 for i in range(20)])


def test_wsd_falls_from_the_peak_also_where_warmup_takes_more_than_is_left():
    found = values("wsd", warmup=0.5, decay=0.9, floor=0.0)
    assert found[49] == 1.0
    assert found[50:] == pytest.approx([1 - (i + 1) / 50 for i in range(50)])


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize(("warmup", "decay"), [(0.0, 0.0), (0.02, 0.2), (0.5, 0.5), (0.9, 1.0), (3, 0.5)])
def test_short_runs_and_extreme_shares_stay_between_zero_and_one(kind, steps, warmup, decay):
    found = values(kind, steps, warmup, decay, 0.0)
    assert all(0 <= value <= 1 for value in found)
    assert any(found)


def test_no_warmup_starts_at_the_peak():
    assert values("cosine", warmup=0.0)[0] == values("wsd", warmup=0.0)[0] == 1.0


def test_warmup_is_a_share_below_one_and_steps_from_there():
    assert [warmup_steps(Optim(warmup=value), 200) for value in (0.0, 0.02, 0.999, 1, 10, 500)] == [
        1,
        4,
        200,
        1,
        10,
        500,
    ]
    assert values("wsd", warmup=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Optim(warmup=-1)
