"""Files and faults that nobody wants, as the page meets them over HTTP: what goes wrong is said, the others go on, and
nothing is half done."""

import io
import sqlite3
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator

import pytest

from mengya.rag import database
from mengya.rag.document import Block, Document
from mengya.rag.reading.limits import Limits
from mengya.rag.store import KnowledgeBase

from ...rag.reading import pdf_maker
from ...rag.reading.office_maker import archive, docx, docx_parts, p
from ..api.scripted import Scripted, soon
from .conftest import Page, Visitor

ENTITIES = '<!DOCTYPE d [<!ENTITY a "哈哈哈哈"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>'


def pdf(count: int, **how: bool) -> bytes:
    return pdf_maker.pdf([pdf_maker.Page([(50, 700, 12, f"第{n}页")]) for n in range(1, count + 1)], **how)


def office(kind: str, extra: bytes) -> bytes:
    """A file of that kind in which one more part is packed."""
    buffer = io.BytesIO()
    if kind == "docx":
        buffer.write(docx(p("正文")))
    elif kind == "xlsx":
        pytest.importorskip("openpyxl").Workbook().save(buffer)
    else:
        pytest.importorskip("pptx").Presentation().save(buffer)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("media/x.bin", extra)
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """All black, of a bit a pixel."""
    pixels = zlib.compress(bytes((width // 8 + 1) * height), 1)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def with_entities() -> bytes:
    parts = docx_parts(p("正文"))
    return archive(parts | {"word/document.xml": ENTITIES + str(parts["word/document.xml"])})


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "加密.pdf": (lambda: pdf(1, encrypted=True), "is encrypted"),
    "截断.pdf": (lambda: pdf(3)[:1500], "damaged or cut off"),
    "截断.docx": (lambda: docx(p("正文" * 999))[:900], "damaged or cut off"),
    **{f"炸弹.{kind}": (lambda kind=kind: office(kind, bytes(20 << 20)), "bomb") for kind in ("docx", "pptx", "xlsx")},
    "炸弹.doc": (lambda: office("docx", bytes(20 << 20)), "bomb"),
    "实体.docx": (with_entities, "declares XML entities"),
    "大图.png": (lambda: png(30_000, 30_000), "30,000 x 30,000 pixels"),
    "图.pdf": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(99), "picture is damaged"),
    "程序.txt": (lambda: b"\x7fELF" + bytes(999), "a program"),
    "空.txt": (lambda: b"", "is empty"),
    "空白.txt": (lambda: b" \n" * 9, "no text found"),
}
TAKEN: dict[str, tuple[Callable[[], bytes], str, str]] = {  # name -> content, a note, text that is not in it
    "万页.pdf": (lambda: pdf(10_000), "it has 10,000 pages; only the first 20 were read", "第21页"),
    "谎言.pdf": (lambda: docx(p("正文")), "the name ends like pdf, but the content is docx", "?"),
    "谎言.docx": (lambda: pdf(1), "the name ends like docx, but the content is pdf", "?"),
    "脚本.html": (lambda: "<script>偷()</script><p onclick='偷()'>正文。</p>".encode(), "left out: 1 scripts", "偷"),
    "实体.xml": (lambda: f"{ENTITIES}<d>&c;</d>正文".encode(), "", "哈哈哈哈哈"),
    "实体.html": (lambda: f"{ENTITIES.replace('d [', 'html [')}<p>&c;正文</p>".encode(), "", "]>"),
}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    limits = Limits(file_bytes=20_000_000, unpacked_bytes=8 << 20, pages=20)
    page = Page(tmp_path_factory.mktemp("strict"), Scripted(), limits=limits)
    yield page
    page.stop()


def base_of(page: Page, name: str) -> KnowledgeBase:
    """As it lies on disk; the name is that of one base alone."""
    found = [KnowledgeBase(path) for path in page.library._folder.rglob("*.sqlite3")]
    return next(base for base in found if base.name == name)


def told(a: Visitor, place: str) -> str:
    """Why its last file could not be read."""
    job = a.read(place)["jobs"][-1]
    a.call("cancel_file", job["id"])
    return job["error"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_told_and_leaves_nothing(strict, name):
    a, b = strict.visitor(), strict.visitor()
    content, words = REFUSED[name]
    a.call("make_base", name)
    a.upload(f"base:{name}", "好.txt", "好的。".encode())
    a.read(f"base:{name}")
    before = base_of(strict, name).counts()
    assert a.upload(f"base:{name}", name, content()).status_code == 200
    assert b.talk("还在吗")["messages"][-1]["state"] == "done"
    why = told(a, f"base:{name}")
    assert why.startswith(f"{name}: ") and words in why and base_of(strict, name).counts() == before
    soon(lambda: not list(strict.library.uploads.iterdir()), 20)
    a.upload(f"base:{name}", name, "改好了。".encode())  # whatever its ending says
    assert [file["name"] for file in a.read(f"base:{name}")["files"]] == ["好.txt", name]


@pytest.mark.parametrize("name", TAKEN)
def test_a_strange_file_is_read_as_far_as_it_goes(strict, name):
    a = strict.visitor()
    content, note, absent = TAKEN[name]
    a.call("make_base", name)
    a.upload(f"base:{name}", name, content())
    found = a.read(f"base:{name}")
    assert found["jobs"] == [] and (not note or note in found["files"][0]["notes"])
    text = "\n".join(stored.passage.text for stored in base_of(strict, name).passages_of(name))
    assert absent not in text and ("正文" in text or "第1页" in text)


def test_a_picture_for_a_question_that_is_too_large(strict):
    a = strict.visitor()
    made = a.call("create", "x", {})["id"]
    answer = a.post("/pictures", params={"conversation": made, "name": "大.png"}, content=png(30_000, 30_000))
    assert "pixels" in answer.json()["error"] and a.talk("还在吗", made)["messages"][-1]["state"] == "done"


@pytest.mark.parametrize(
    ("does", "words"),
    [("time.sleep(600)", "stood still"), ("os.abort()", "crashed"), ("os.kill(os.getpid(), 9)", "crashed")],
)
def test_a_reader_that_hangs_or_dies(serve, tmp_path, monkeypatch, does, words):
    (tmp_path / "pypdfium2.py").write_text(f"import os, time\n{does}\n")
    monkeypatch.syspath_prepend(tmp_path)
    page = serve(limits=Limits(page_seconds=5))
    a, b = page.visitor(), page.visitor()
    a.call("make_base", "a")
    a.upload("base:a", "x.pdf", pdf(1))
    b.call("make_base", "b")
    b.upload("base:b", "y.txt", "别人的文件。".encode())
    assert [file["name"] for file in b.read("base:b")["files"]] == ["y.txt"]
    assert words in told(a, "base:a") and set(base_of(page, "a").counts().values()) == {0}


def test_many_slow_files_of_one_keep_nobody_waiting(serve, monkeypatch):
    reading, ended = [], threading.Event()

    def slow(path, name, limits, progress):
        reading.append(name)
        while not ended.is_set():
            progress(0, 0)
            time.sleep(0.01)
        return Document(name, "text", (Block("text", "文字"),))

    monkeypatch.setattr("mengya.serve.web.library.read_file", slow)
    page = serve()
    a, b = page.visitor(), page.visitor()
    for who, count in ((a, 6), (b, 1)):
        who.call("make_base", "b")
        for number in range(count):
            who.upload("base:b", f"{count} {number}.txt", f"{count} {number}".encode())
        soon(lambda count=count: any(name.startswith(f"{count} ") for name in reading))
    assert len(reading) == 3
    waiting = [job["id"] for job in a.call("files", "base:b")["jobs"] if job["state"] == "waiting"]
    for job in waiting:  # who waits can go, too
        a.call("cancel_file", job)
    soon(lambda: len(list(page.library.uploads.iterdir())) == 3)
    ended.set()
    assert len(a.read("base:b")["files"]) == 2 and len(b.read("base:b")["files"]) == 1


def test_a_base_that_another_process_holds_holds_nobody_else(serve, monkeypatch):
    page = serve()
    a, b = page.visitor(), page.visitor()
    for who, base in ((a, "甲"), (b, "乙")):
        who.call("make_base", base)
        who.upload(f"base:{base}", "a.txt", b"one")
        who.read(f"base:{base}")
    base = base_of(page, "甲")
    other = sqlite3.connect(base.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    a.upload("base:甲", "b.txt", b"two")
    soon(lambda: a.call("files", "base:甲")["jobs"][0]["state"] == "reading")
    b.upload("base:乙", "b.txt", b"two")
    assert len(b.read("base:乙")["files"]) == 2 and b.call("bases") == ["base:乙"] and a.call("bases") == ["base:甲"]
    assert b.talk("你好", bases=["base:乙"])["messages"][-1]["state"] == "done"
    assert [file["name"] for file in a.call("files", "base:甲")["files"]] == ["a.txt"]  # it can be read
    other.execute("ROLLBACK")
    assert len(a.read("base:甲")["files"]) == 2  # it waited
    monkeypatch.setattr(database, "BUSY", 0.05)
    other.execute("BEGIN EXCLUSIVE")
    before = base.counts()
    a.upload("base:甲", "c.txt", b"three")
    assert "knowledge base 甲: another process" in told(a, "base:甲") and base.counts() == before
    assert "another process" in a.call("remove_file", "base:甲", "a.txt")
    other.close()
    a.upload("base:甲", "c.txt", b"three")
    assert len(a.read("base:甲")["files"]) == 3


def test_conversations_that_another_process_holds(serve, monkeypatch):
    monkeypatch.setattr("mengya.serve.web.store._BUSY", 0.05)
    page = serve()
    a = page.visitor()
    view = a.talk("你好")
    other = sqlite3.connect(page.store._path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert "another process" in a.call("send", view["id"], view["messages"][-1]["id"], "再问", {})
    assert len(a.call("open", view["id"])["messages"]) == 2
    other.close()
    assert len(a.talk("再问", view["id"], view["messages"][-1]["id"])["messages"]) == 4


def test_a_disk_that_is_full_when_a_file_is_indexed(small_disk):
    page = Page(small_disk, Scripted())
    try:
        a, b = page.visitor(), page.visitor()
        a.call("make_base", "b")
        a.upload("base:b", "好.txt", "好的。".encode())
        a.read("base:b")
        before = base_of(page, "b").counts()
        text = "".join(map(chr, range(0x4E00, 0x9FA5))) * 3
        a.upload("base:b", "长.txt", text.encode())
        assert "disk is full" in told(a, "base:b") and base_of(page, "b").counts() == before
        assert b.talk("还在吗")["messages"][-1]["state"] == "done"
        a.upload("base:b", "短.txt", "短的。".encode())
        assert [file["name"] for file in a.read("base:b")["files"]] == ["好.txt", "短.txt"]
    finally:
        page.stop()


def test_an_upload_that_breaks_off(page):
    a = page.visitor()
    made = a.call("create", "x", {})["id"]

    def half() -> Iterator[bytes]:
        yield b"half" * 1000
        raise ConnectionError

    with pytest.raises(ConnectionError):
        a.post("/files", params={"place": f"conversation:{made}", "name": "a.txt"}, content=half())
    soon(lambda: not list(page.library.uploads.iterdir()), 20)
    assert a.call("files", f"conversation:{made}") == {"files": [], "jobs": []}
    with pytest.raises(ConnectionError):
        a.post("/import", content=half())
    assert len(a.call("conversations", "")) == 1
