"""The process that reads: what it cannot do to the one that asks."""

import threading
import time
from pathlib import Path

import pytest

from mengya.errors import UserError
from mengya.rag.reading.limits import Limits
from mengya.rag.reading.worker import read_file

from .pdf_maker import Page, pdf


@pytest.fixture
def stored(tmp_path):
    """stored(bytes) -> the path of a file that holds them."""

    def stored(content: bytes) -> Path:
        path = tmp_path / "stored"
        path.write_bytes(content)
        return path

    return stored


def pages(count: int) -> bytes:
    return pdf([Page([(50, 700, 12, f"第{n}页")]) for n in range(1, count + 1)])


def test_a_document_comes_back_whole(stored):
    told = []
    document = read_file(stored(pages(3)), "【密】合同#1%20.pdf", progress=lambda done, all_: told.append((done, all_)))
    assert document.name == "【密】合同#1%20.pdf" and document.kind == "pdf"
    assert [(b.text, b.page) for b in document.blocks] == [("第1页", 1), ("第2页", 2), ("第3页", 3)]
    assert [page.number for page in document.pages] == [1, 2, 3]
    assert told[-1] in ((2, 3), (3, 3)) and told == sorted(told)


@pytest.fixture
def reader_that(tmp_path, monkeypatch):
    """reader_that(statement): the library for PDF files does that when it is imported."""

    def reader_that(statement: str) -> None:
        folder = tmp_path / "libraries"
        folder.mkdir()
        (folder / "pypdfium2.py").write_text(f"import os, time, socket, subprocess, sys\n{statement}\n")
        monkeypatch.syspath_prepend(folder)

    return reader_that


@pytest.mark.parametrize(
    "statement, message",
    [
        ("time.sleep(600)", r"a\.pdf: its reader stood still for 2 seconds"),
        ("while True: pass", "stood still"),
        ("os.abort()", "its reader crashed"),
        ("os._exit(0)", "its reader crashed"),
        ("x = bytearray(8 << 30)", "needs more than 2,048 MB of memory"),
        ("raise KeyError('x')", r"may be damaged \(KeyError\)"),
        ("print('noise', flush=True); os.write(1, b'{}'); os.abort()", "its reader crashed"),
        ("socket.create_connection(('127.0.0.1', 1))", r"may be damaged \(PermissionError\)"),
        ("subprocess.run(['true'])", r"may be damaged \(PermissionError\)"),
    ],
)
def test_a_reader_that_fails_is_told_in_words(stored, reader_that, statement, message):
    reader_that(statement)
    with pytest.raises(UserError, match=message):
        read_file(stored(pages(1)), "a.pdf", Limits(page_seconds=2, memory_bytes=2 << 30))


def test_its_environment_holds_no_keys(stored, reader_that, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    reader_that("raise type('_'.join(name for name in os.environ if 'KEY' in name) or 'None', (Exception,), {})")
    with pytest.raises(UserError, match=r"\(None\)"):
        read_file(stored(pages(1)), "a.pdf")


class Stop(Exception):
    pass


def test_reading_can_be_stopped(stored):
    threads = threading.active_count()

    def progress(done: int, of: int) -> None:
        if done >= 5:
            raise Stop

    with pytest.raises(Stop):
        read_file(stored(pages(200)), "a.pdf", progress=progress)
    assert threading.active_count() == threads


def test_reading_can_be_stopped_before_the_first_page(stored, reader_that):
    reader_that("time.sleep(600)")
    begun = time.monotonic()

    def progress(done: int, of: int) -> None:
        if time.monotonic() - begun > 0.5:
            raise Stop

    with pytest.raises(Stop):
        read_file(stored(pages(1)), "a.pdf", progress=progress)
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    "content, limits, message",
    [
        (b"", {}, "empty"),
        (b"x" * 2000, {"file_bytes": 1000}, "is the most that is read"),
        (pages(40), {"seconds": 0.001}, "longer than 0.001 seconds"),
    ],
)
def test_files_beyond_the_limits_are_refused(stored, content, limits, message):
    with pytest.raises(UserError, match=message):
        read_file(stored(content), "a.pdf", Limits(**limits))


def test_a_path_that_is_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_file(tmp_path, "a.pdf")
