"""Input is read one step ahead, in a thread that hands on its errors and ends with its user."""

import threading

import pytest
import torch

from mengya.batch import Source
from mengya.data.prefetch import prefetch


class Rows:
    """Stands for a Batch."""

    def __init__(self, step):
        self.step = step

    def to(self, device):
        assert device == "cpu"
        return self


class From(Source):
    """Batches that a function makes."""

    def __init__(self, make, ahead=1):
        self._make, self.ahead = make, ahead

    def __call__(self, step):
        return self._make(step)


CPU = torch.device("cpu")


def names():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("input")]


def test_steps_come_in_order_and_one_is_read_ahead():
    read, second = [], threading.Event()

    def source(step):
        read.append(step)
        if step == 4:
            second.set()
        return [Rows(step)]

    found = prefetch(From(source), range(3, 7), CPU)
    step, (batch,) = next(found)
    assert step == batch.step == 3
    assert second.wait(5), "the next step is read while this one is computed"
    assert read == [3, 4]
    assert [(step, batches[0].step) for step, batches in found] == [(4, 4), (5, 5), (6, 6)]
    assert read == [3, 4, 5, 6] and names() == []
    assert list(prefetch(From(source), range(7, 7), CPU)) == []


def test_an_error_of_the_thread_comes_at_its_step():
    def source(step):
        if step == 2:
            raise OSError("the disk is gone")
        return [Rows(step)]

    found = prefetch(From(source), range(4), CPU)
    assert [next(found)[0], next(found)[0]] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)
    assert names() == []


def test_closing_it_ends_the_thread():
    found = prefetch(From(lambda step: [Rows(step)]), range(100), CPU)
    next(found)
    assert names()
    found.close()
    assert names() == []


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_source_says_how_far_ahead_it_may_be_asked(ahead):
    read, early = [], threading.Event()

    def source(step):
        read.append(step)
        if len(read) == ahead + 1:
            early.set()
        return [Rows(step)]

    found = prefetch(From(source, ahead), range(5), CPU)
    assert read == []
    assert next(found)[0] == 0 and early.wait(5)
    assert read == list(range(ahead + 1)) and bool(names()) == bool(ahead)
    assert [step for step, _ in found] == [1, 2, 3, 4] and read == [0, 1, 2, 3, 4]
