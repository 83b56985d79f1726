"""Our engine as a backend, when its thread has died."""

import threading
from queue import SimpleQueue

import pytest

from mengya.errors import UserError
from mengya.infer.backends import Load, listening
from mengya.infer.backends.local import Local
from mengya.infer.request import Request


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_an_engine_that_has_died(model, chat, monkeypatch) -> None:
    monkeypatch.setattr(listening, "_LOOK", 0.05)
    backend, pieces = Local("sprout", model, chat.tokenizer, chat), SimpleQueue()
    died = threading.Event()

    def fail(*why) -> None:
        died.set()
        raise RuntimeError("out of memory, and no memory to say so")

    monkeypatch.setattr(backend._engine, "step", fail)
    monkeypatch.setattr(backend._engine, "end_all", fail)
    backend.submit(Request(prompt="从前"), pieces.put)
    with pytest.raises(UserError, match="has stopped working on this answer; try again"):
        listening.awaited(pieces, backend)
    assert died.is_set() and backend.load()[:2] == Load(0, 0, 0, 0)[:2]
    with pytest.raises(UserError, match="the engine has stopped working; start it again"):
        backend.submit(Request(prompt="从前"), pieces.put)
    backend.close()
