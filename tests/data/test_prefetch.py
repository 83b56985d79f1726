"""Input is read one step ahead, in a thread that hands on its errors and ends with its user."""

import threading

import pytest
import torch

from mengya.data.prefetch import prefetch


class Rows:
    """Stands for a Batch."""

    def __init__(self, step):
        self.step = step

    def to(self, device):
        assert device == "cpu"
        return self


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

    found = prefetch(source, range(3, 7), CPU)
    step, (batch,) = next(found)
    assert step == batch.step == 3
    assert second.wait(5), "the next step is read while this one is computed"
    assert read == [3, 4]
    assert [(step, batches[0].step) for step, batches in found] == [(4, 4), (5, 5), (6, 6)]
    assert read == [3, 4, 5, 6] and names() == []
    assert list(prefetch(source, range(7, 7), CPU)) == []


def test_an_error_of_the_thread_comes_at_its_step():
    def source(step):
        if step == 2:
            raise OSError("the disk is gone")
        return [Rows(step)]

    found = prefetch(source, range(4), CPU)
    assert [next(found)[0], next(found)[0]] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)
    assert names() == []


def test_closing_it_ends_the_thread():
    found = prefetch(lambda step: [Rows(step)], range(100), CPU)
    next(found)
    assert names()
    found.close()
    assert names() == []
