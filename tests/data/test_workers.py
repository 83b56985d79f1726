"""One ordered map: the same results from any number of processes, and an end to all of them whatever happens."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mengya.data import workers
from mengya.data.documents import Document
from mengya.data.workers import ordered_map
from mengya.errors import UserError
from mengya.stages.corpus import _clean


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Start the processes for the first item."""
    monkeypatch.setattr(workers, "_ALONE", 0)


def square(number):
    time.sleep(0.02 if number % 3 == 0 else 0)
    return number * number, os.getpid()


def fail(number):
    if number == 5:
        raise ValueError(f"{number} cannot be used")
    return number


def die(number):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_results_come_in_order_from_several_processes():
    found = list(ordered_map(square, range(60), 3))
    assert [value for value, _ in found] == [number * number for number in range(60)]
    assert os.getpid() not in {process for _, process in found}


def test_documents_are_cleaned_alike_by_any_number_of_processes():
    batches = [[Document(f" \x07第{n}篇\n\n\n\n\n{i} ", "a.txt", f"{n}.{i}") for i in range(9)] for n in range(12)]
    wanted = list(ordered_map(_clean, batches, 1))
    assert [list(ordered_map(_clean, batches, count)) for count in (2, 3)] == [wanted, wanted]


def test_little_work_starts_no_process(monkeypatch):
    monkeypatch.setattr(workers, "_ALONE", 8)
    assert {process for _, process in ordered_map(square, range(8), 4)} == {os.getpid()}


@pytest.mark.parametrize("count", [1, 2])
def test_no_more_is_asked_for_than_is_needed_soon(count):
    taken = []
    results = ordered_map(square, (taken.append(n) or n for n in range(10_000)), count)
    for _ in range(20):
        next(results)
    assert len(taken) <= 20 + 2 * count + 1
    results.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_surfaces_once_with_its_traceback_after_the_results_before(count):
    found = []
    with pytest.raises(ValueError, match="5 cannot be used") as caught:
        found.extend(ordered_map(fail, range(100), count))
    assert count == 1 or 'raise ValueError(f"{number} cannot be used")' in str(caught.value.__cause__)
    assert not multiprocessing.active_children()


def test_an_error_in_the_items_ends_the_processes():
    def items():
        yield from range(9)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(ordered_map(square, items(), 2))
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_an_error_and_not_a_wait():
    with pytest.raises(UserError, match="a worker process was killed"):
        list(ordered_map(die, range(100), 2))
    assert not multiprocessing.active_children()


SCRIPT = """
import os, signal, sys, time
from mengya.data import workers
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
def slow(number):
    time.sleep(0.05)
    return os.getpid()
if __name__ == "__main__":
    workers._ALONE = 0
    for process in workers.ordered_map(slow, range(10_000), 2):
        print(process, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_processes_end_with_the_one_that_they_work_for(tmp_path: Path, number):
    (tmp_path / "script.py").write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        seen = {int(process.stdout.readline()) for _ in range(10)}
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # a terminal tells the whole group
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == -number and len(seen) == 2
    assert errors.count("Traceback") == (number == signal.SIGINT)
    for _ in range(100):
        if not any(Path(f"/proc/{worker}").exists() for worker in seen):
            return
        time.sleep(0.1)
    pytest.fail("a worker is still there")
