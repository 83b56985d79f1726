"""`bench/server_load.py`: what it counts, and that a server under it stays whole."""

import asyncio
import importlib
import json
import sys
from pathlib import Path

import pytest

from .scripted import Say, Scripted, soon

BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("server_load")


def talk(request, choice):
    return [Say("春", wait=0.02)] * 12


def test_a_server_with_room_for_half_of_its_clients(serving, bench, monkeypatch, capsys):
    live = serving(Scripted(talk, slots=3), limits={"open_answers": 4})
    monkeypatch.setattr(sys, "argv", ["server_load.py", f"{live.url}/v1", "--clients", "8", "--seconds", "3"])
    bench.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["errors"] == 0 == found["left_open"], found
    assert found["complete"] + found["cancelled"] >= 3 and found["refused"] >= 1
    assert 0.01 < found["p95_first_token"] < 3 and abs(found["memory_growth"]) < 0.5
    assert live.backend.free_blocks == 64 and live.backend.running == 0


def test_who_leaves_is_counted(serving, bench, monkeypatch):
    monkeypatch.setattr(bench, "LEAVES", 1)
    monkeypatch.setattr(bench, "PLAIN", 0)
    live = serving(Scripted(talk))
    found = asyncio.run(bench.load(f"{live.url}/v1", clients=2, seconds=0.5))
    assert found["cancelled"] >= 1 and found["errors"] == found["complete"] == 0
    soon(lambda: live.backend.cancels == found["cancelled"])


def test_errors_are_counted(serving, bench):
    live = serving(lambda request, choice: [Say("春"), Say(error="NaN")])
    found = asyncio.run(bench.load(f"{live.url}/v1", clients=1, seconds=0.5))
    assert found["errors"] >= 1 and found["complete"] == 0
    assert found["faults"].keys() <= {"a stream broke off", "status 500"}
