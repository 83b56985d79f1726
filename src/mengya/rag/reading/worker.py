"""A file is read in a process of its own, which may hang, crash or grow without harm to anybody else."""

import hashlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mengya
from mengya.errors import UserError
from mengya.manifest import sha256_of
from mengya.rag.document import Document
from mengya.rag.reading.limits import Limits
from mengya.rag.reading.names import name_as_text

Progress = Callable[[int, int], None]
"""progress(pages done, pages in all), both 0 as long as nothing is known; called after each page, and several times a
second. What it raises ends the reading."""

READERS = 2
"""Counts up when something else is read of the same files: those that are added again are then read anew."""
_TICK = 0.2
"""Seconds between two calls of the progress at most."""


def reading_of(path: Path) -> str:
    """SHA-256 of a file's content and of `READERS`: the same for what is read alike. OSError if it cannot be opened."""
    return hashlib.sha256(f"{READERS} {sha256_of(path)}".encode()).hexdigest()


def read_file(path: Path, name: str, limits: Limits | None = None, progress: Progress | None = None) -> Document:
    """What the file at `path`, called `name` by its user, holds; its kind is decided by its content.

    A file without text gives a document without blocks and with a note, never an error. UserError, with what to do: the
    file is refused (too large, encrypted, damaged, an archive bomb, a kind that is not read), or its reader ran out of
    time or memory, or crashed. Blocks while it reads; may be called from several threads at once.
    """
    limits, shown = limits or Limits(), name_as_text(name)
    try:
        return _document(_answer(path, shown, limits, progress or (lambda done, pages: None)), shown)
    except UserError as error:
        raise UserError(f"{shown}: {error}") from error


def _answer(path: Path, name: str, limits: Limits, progress: Progress) -> dict[str, Any]:
    """The last message of the process that reads."""
    if not path.is_file():
        raise UserError("there is no such file any more; add it again")
    size = path.stat().st_size
    if size > limits.file_bytes:
        raise UserError(f"it has {_mb(size)}, and {_mb(limits.file_bytes)} is the most that is read; split it")
    if size == 0:
        raise UserError("the file is empty")
    with _reader() as process:
        assert process.stdin and process.stdout
        question = {"path": str(path.absolute()), "name": name, "limits": asdict(limits)}
        process.stdin.write(json.dumps(question).encode() + b"\n")
        process.stdin.flush()
        clock = _Clock()
        done = pages = 0
        for line in _lines(process.stdout.fileno(), 12 * limits.characters + (64 << 20)):
            message = json.loads(line) if line else {}
            if "document" in message or "error" in message:
                return message
            if message:
                done, pages = int(message["done"]), int(message["pages"])
            progress(done, pages)
            where = f" after page {done} of {pages}" if done else ""
            clock.tick(page=bool(message))
            if clock.seconds > limits.seconds:
                raise UserError(f"reading it took longer than {limits.seconds:g} seconds{where}; split it")
            if clock.page_seconds > limits.page_seconds:
                raise UserError(f"its reader stood still for {limits.page_seconds:g} seconds{where}; it may be damaged")
        code = process.wait(10)
    raise UserError(
        f"its reader crashed (exit code {code}): the file is damaged, or needs more than "
        f"{limits.memory_bytes >> 20:,} MB of memory; open it and save it again, or split it"
    )


class _Clock:
    """Seconds in which this process ran: while a machine sleeps, or both processes wait for it, none are counted."""

    def __init__(self) -> None:
        self.seconds = self.page_seconds = 0.0
        self._last = time.monotonic()

    def tick(self, page: bool) -> None:
        now = time.monotonic()
        passed = min(now - self._last, 5 * _TICK)
        self._last, self.seconds = now, self.seconds + passed
        self.page_seconds = 0.0 if page else self.page_seconds + passed


@contextmanager
def _reader() -> Iterator[subprocess.Popen]:
    """A process with nothing of our environment but what Python needs: no keys, no proxies."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "TEMP", "SYSTEMROOT") if name in os.environ}
    places = [str(Path(mengya.__file__).parents[1]), *filter(None, sys.path)]
    environment = kept | {"PYTHONPATH": os.pathsep.join(places), "PYTHONUTF8": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mengya.rag.reading"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream
            stream.close()


def _lines(descriptor: int, longest: int) -> Iterator[bytes]:
    """Whole lines as they come, and b"" at least every `_TICK` seconds, until the other side closes."""
    rest: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            yield b""
            if not selector.select(_TICK):
                continue
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                return
            *whole, last = piece.split(b"\n")
            for line in whole:
                yield b"".join([*rest, line])
                rest = []
            rest.append(last)
            if sum(map(len, rest)) > longest:
                raise UserError("its reader gave too much text; split the file")


def _mb(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MB"


def _document(answer: dict[str, Any], name: str) -> Document:
    from pydantic import TypeAdapter

    if "error" in answer:
        raise UserError(answer["error"])
    # The process has read a stranger's file: what it says is checked like any other input.
    return TypeAdapter(Document).validate_python(answer["document"] | {"name": name})
