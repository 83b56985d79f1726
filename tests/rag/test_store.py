"""Knowledge bases on disk: whole or not there, whatever happens; names are text."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("rjieba", reason="searching needs pip install 'mengya[documents]'")
pytest.importorskip("opencc", reason="searching needs pip install 'mengya[documents]'")

import numpy as np

from mengya.errors import UserError
from mengya.rag import database
from mengya.rag.document import Block, Document, Page
from mengya.rag.retrieve import Retriever
from mengya.rag.store import Embedder, KnowledgeFolder, UnknownBase


def document(text: str, name: str = "a.txt", **more) -> Document:
    return Document(name, "text", (Block("text", text),), **more)


def texts(base, query: str) -> list[str]:
    return [hit.stored.passage.text for hit in Retriever().find(base, [query])]


@pytest.fixture
def folder(tmp_path) -> KnowledgeFolder:
    return KnowledgeFolder(tmp_path / "knowledge")


def test_a_file_is_its_name_and_its_content_decides(folder):
    base = folder.open_or_create("法规")
    assert base.add(document("春天来了。"), "1") == "new"
    assert base.add(document("春天来了。"), "1") == "same"
    before = base.counts()
    assert base.add(document("春天来了。", "b.txt"), "1") == "new"  # equal bytes under another name
    assert base.add(document("秋天来了。"), "2") == "changed"
    assert {table: count - before[table] for table, count in base.counts().items()} == {
        "files": 1, "passages": 1, "search": 1, "vectors": 0
    }  # fmt: skip
    assert texts(base, "春天") == ["春天来了。"] and texts(base, "秋天") == ["秋天来了。"]
    assert [file.name for file in base.files()] == ["b.txt", "a.txt"]
    assert base.parsed("2") == base.document("a.txt") == document("秋天来了。")
    assert base.holds("a.txt", "2") and not base.holds("a.txt", "1") and base.parsed("1").name == "b.txt"


def test_a_base_that_is_only_being_made_is_not_there_yet(folder):
    base = folder.open_or_create("b")
    path = base.path.with_name(folder._path("c").name)
    with sqlite3.connect(path) as made:
        made.execute("PRAGMA journal_mode = WAL")
    with pytest.raises(UnknownBase, match="no knowledge base yet"):
        folder.open("c")
    assert folder.names() == ["b"] and folder.open_or_create("c").files() == []


def test_removing_leaves_nothing(folder):
    base = folder.open_or_create("b")
    embedder = Embedder("ones", lambda texts: np.ones((len(texts), 2), "f4"))
    empty = base.counts()
    base.add(document("龙舌兰与水。" * 300), "1", embedder)
    assert min(base.counts().values()) >= 1
    assert base.remove("a.txt") and not base.remove("a.txt")
    assert base.counts() == empty and texts(base, "龙舌兰") == []
    with sqlite3.connect(base.path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert "龙舌兰".encode() not in base.path.read_bytes()


def test_a_file_without_text_is_no_success_and_changes_nothing(folder):
    base = folder.open_or_create("b")
    base.add(document("春天来了。"), "1")
    pages = (Page(1, "blank"), Page(2, "unread"), Page(3, "unread"))
    with pytest.raises(UserError, match=r"a\.txt: no text found \(pages 2, 3 could not be read; pages 1 are blank\)"):
        base.add(Document("a.txt", "pdf", (), pages), "2")
    assert texts(base, "春天") == ["春天来了。"] and not base.holds("a.txt", "2")


NAMES = (
    "【密】合同（终稿）#1%20.pdf", "名" * 200 + ".pdf", "..\\x.txt", "CON.txt", "🎉.md", "cafe\u0301.txt",
    "\u202e反.txt", "../../x",
    "/x/y", "..\\..\\y", "a/b.txt", "'; DROP TABLE files; --", '"', "x\x00y", "<img src=x onerror=1>", ".", "..",
    "~", "$HOME",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_are_text(folder, tmp_path, name):
    before = set(tmp_path.rglob("*"))
    base = folder.open_or_create(name)
    base.add(document("春天来了。", name), "1")
    (file,) = base.files()
    assert (file.name, folder.names(), folder.open(name).name) == (name, [name], name)
    assert Retriever().find(base, ["春天"])[0].stored.file == name
    made = set(tmp_path.rglob("*")) - before
    assert all(path.parent == tmp_path / "knowledge" or path == tmp_path / "knowledge" for path in made)
    assert base.remove(name)
    folder.remove(name)
    assert list((tmp_path / "knowledge").iterdir()) == [] and folder.names() == []


def test_names_that_look_the_same_are_the_same(folder):
    base = folder.open_or_create("cafe\u0301")
    assert folder.open("café").path == base.path
    assert (
        base.add(document("a", "café.txt"), "1") == "new"
        and base.add(document("b", "cafe\u0301.txt"), "2") == "changed"
    )


@pytest.mark.parametrize("name", ["", "  ", "x" * 256])
def test_what_is_no_name(folder, name):
    with pytest.raises(UserError, match="a name of 1 to 255 characters"):
        folder.open_or_create(name)
    if not name.strip():
        with pytest.raises(UserError, match="needs a name"):
            folder.open_or_create("b").add(document("a", name), "1")


def test_an_unknown_base(folder):
    with pytest.raises(UnknownBase, match="no knowledge base '无'"):
        folder.open("无")
    assert folder.names() == []


KILLED = """
import os, signal, sys
from pathlib import Path
from mengya.rag import database, store
from mengya.rag.document import Block, Document
base = store.KnowledgeFolder(Path(sys.argv[1])).open_or_create("b")
connect, left = database.connect, int(sys.argv[2])
class Killed:
    def __init__(self, db): self.db = db
    def __getattr__(self, name): return getattr(self.db, name)
    def execute(self, statement, *values):
        global left
        left -= statement.startswith(("BEGIN", "INSERT", "DELETE", "COMMIT"))
        if left < 0: os.kill(os.getpid(), signal.SIGKILL)
        return self.db.execute(statement, *values)
database.connect = lambda path, **how: Killed(connect(path, **how))
base.add(Document("a.txt", "text", (Block("text", "新的。" * 400),)), "2")
base.remove("a.txt")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_kill_between_any_two_steps_leaves_nothing_half_done(folder, tmp_path):
    base = folder.open_or_create("b")
    base.add(document("旧的。" * 10), "1")
    old = base.counts()
    seen, step, done = [], 0, False
    environment = os.environ | {"PYTHONPATH": str(Path(database.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    while not done:
        command = [sys.executable, "-c", KILLED, str(tmp_path / "knowledge"), str(step)]
        done = subprocess.run(command, env=environment, timeout=120).returncode != -signal.SIGKILL
        counts, found = base.counts(), (bool(texts(base, "旧的")), bool(texts(base, "新的")))
        assert counts["passages"] == counts["search"] and sum(found) == counts["files"]
        assert found != (True, False) or counts == old
        seen.append(found)
        step = step * 2 + 1 if not found[1] else step + 3
    assert {(True, False), (False, False)} <= set(seen)


def test_many_write_and_read_while_one_holds_on(folder):
    base = folder.open_or_create("b")
    base.add(document("春天来了。", "first"), "0")
    faults: list[BaseException] = []

    def guarded(work):
        def run(number):
            try:
                work(number)
            except BaseException as error:
                faults.append(error)

        return run

    def hold(_):
        db = sqlite3.connect(base.path, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        time.sleep(0.5)
        db.execute("COMMIT")
        db.close()

    def write(number):
        for version in range(2):
            base.add(document(f"第{number}个文件。", f"{number % 6}.txt"), f"{number}-{version}")

    def read(_):
        for _ in range(3):
            assert texts(base, "春天") == ["春天来了。"]

    threads = [threading.Thread(target=guarded(hold), args=(0,))]
    threads += [threading.Thread(target=guarded(work), args=(n,)) for n in range(12) for work in (write, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == [] and base.counts() == {"files": 7, "passages": 7, "search": 7, "vectors": 0}


def test_a_base_that_another_process_holds(folder, monkeypatch):
    base = folder.open_or_create("b")
    monkeypatch.setattr(database, "BUSY", 0.05)
    db = sqlite3.connect(base.path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match="another process has been writing"):
        base.add(document("春天。"), "1")
    assert texts(base, "春天") == []  # reading goes on
    db.execute("ROLLBACK")
    db.close()
    assert base.add(document("春天。"), "1") == "new"


def test_a_full_disk(small_disk):
    base = KnowledgeFolder(small_disk).open_or_create("b")
    base.add(document("春天来了。"), "1")
    before = base.counts()
    with pytest.raises(UserError, match="disk is full"):
        base.add(document("".join(map(chr, range(0x4E00, 0x9FA5))) * 30, "b.txt"), "2")
    assert base.counts() == before and texts(base, "春天") == ["春天来了。"]


def test_a_damaged_base_is_told_and_the_others_work(folder):
    bad, good = folder.open_or_create("坏"), folder.open_or_create("好")
    for suffix in ("-wal", "-shm"):
        bad.path.with_name(bad.path.name + suffix).unlink(missing_ok=True)
    bad.path.write_bytes(b"no database" * 100)
    assert folder.names() == ["好"] and folder.open("好").path == good.path
    with pytest.raises(UserError, match="damaged"):
        folder.open("坏")
    folder.remove("坏")
    assert folder.open_or_create("坏").files() == []


def test_vectors_of_one_embedder(folder):
    base = folder.open_or_create("b")

    def ones(name):
        return Embedder(name, lambda texts: np.ones((len(texts), 2), "f4"))

    base.add(document("春天。"), "1")
    assert base.vectors().matrix.shape[0] == 0 and not base.holds("a.txt", "1", ones("x"))
    assert base.add(document("春天。"), "1", ones("x")) == "changed" and base.holds("a.txt", "1", ones("x"))
    assert (base.vectors().embedder, base.vectors().matrix.tolist()) == ("x", [[1.0, 1.0]])
    with pytest.raises(UserError, match="has vectors of x, not of y"):
        base.add(document("秋天。", "b.txt"), "2", ones("y"))
    assert base.counts()["files"] == 1
    base.add(document("秋天。", "b.txt"), "2", ones("x"))
    assert base.vectors().matrix.shape == (2, 2)
    base.remove("a.txt")
    assert base.vectors().matrix.shape == (1, 2)


def test_a_base_that_is_removed_while_it_is_asked(tmp_path):
    """SQLite makes a file that it does not find, and then misses its tables."""
    folder = KnowledgeFolder(tmp_path)
    base = folder.open_or_create("b")
    base.add(Document("a.txt", "text", (Block("text", "违约金"),)), "1")
    folder.remove("b")
    for use in (lambda: Retriever().find(base, ["违约金"]), base.files, lambda: base.remove("a.txt")):
        with pytest.raises(UnknownBase, match="there is no knowledge base 'b'"):
            use()
    assert list(tmp_path.iterdir()) == [] and folder.open_or_create("b").files() == []
