"""Knowledge bases that change while they are asked, and what is said of those that are not."""

import threading
import time
from types import SimpleNamespace

import pytest

from mengya.rag.document import Block, Document
from mengya.rag.passages import text_of
from mengya.rag.store import KnowledgeBase
from mengya.serve.web.library import passage_view

from ..api.scripted import soon
from .test_documents import RULES, answer

ASKED = "访客停车每小时收费多少？"
FOUND = "每小时收费八元[1]。"


@pytest.fixture
def base(serve):
    """(a visitor, the page), who has a base 园区 with the rules."""
    page = serve(answer)
    a = page.visitor()
    a.call("make_base", "园区")
    a.upload("base:园区", "规定.md", RULES.encode())
    a.read("base:园区")
    return a, page


def last(view):
    return view["messages"][-1]


def test_a_base_that_is_gone_is_said(base):
    """open-webui PR 8432: a base that was deleted stayed with its chats, which were answered without a word of it."""
    a, _ = base
    a.call("make_base", "空的")
    view = a.talk(ASKED, bases=["base:园区", "base:没有的", "base:空的"])
    assert last(view)["text"] == FOUND and last(view)["info"]["absent"] == ["没有的", "空的"]
    a.call("remove_base", "园区")
    view = a.talk(ASKED, view["id"], last(view)["id"], bases=["base:园区"])
    assert last(view)["text"] == "没有资料" and last(view)["info"]["absent"] == ["园区"]
    assert "absent" not in last(a.talk(ASKED))["info"]
    told = a.post("/import", content=a.get("/export.zip").content).json()["value"]
    assert told == {"conversations": 0, "files": 0}
    b = a.__class__(str(a.base_url))
    b.post("/import", content=a.get("/export.zip").content)
    again = b.call("open", b.call("conversations", "")[-1]["id"])
    assert last(again)["info"]["absent"] == ["园区"]


def test_files_that_are_still_read_keep_nobody_waiting(base, monkeypatch):
    """ragflow#6464: no question was answered before the last file was read."""
    go = threading.Event()

    def read(path, name, limits, progress):
        while not go.wait(0.01):
            progress(0, 0)
        return Document(name, "text", (Block("text", "访客停车每小时收费九元。"),))

    monkeypatch.setattr("mengya.serve.web.library.read_file", read)
    a, _ = base
    a.upload("base:园区", "长.txt", b"x")
    told = last(a.talk(ASKED, bases=["base:园区"]))
    assert told["text"] == FOUND and told["info"]["unread"] == ["长.txt"]
    a.call("make_base", "新的")
    a.upload("base:新的", "长.txt", b"x")
    view = a.call("send", "", "", ASKED, {"bases": ["base:新的"]})  # where there is no other file, it waits
    time.sleep(0.2)
    assert last(a.call("open", view["id"]))["state"] == "answering"
    go.set()
    told = last(a.whole(view))
    assert told["text"] == "每小时收费九元[1]。" and "unread" not in told["info"]


@pytest.mark.parametrize("what", ["remove_base", "remove_file", "change"])
def test_a_base_that_changes_while_it_is_searched(base, monkeypatch, what):
    a, _page = base
    a.call("make_base", "别的")
    a.upload("base:别的", "别的.md", "访客停车每小时收费七元。".encode())
    a.read("base:别的")
    found, changed = KnowledgeBase.passages, []

    def change(self, ids):
        if self.name == "园区" and not changed:
            changed.append(what)
            if what == "remove_base":
                a.call("remove_base", "园区")
            elif what == "remove_file":
                a.call("remove_file", "base:园区", "规定.md")
            else:
                a.upload("base:园区", "规定.md", "访客停车每小时收费五元。".encode())
                a.read("base:园区")
        return found(self, ids)

    monkeypatch.setattr(KnowledgeBase, "passages", change)
    view = a.talk(ASKED, bases=["base:园区", "base:别的"])
    assert last(view)["state"] == "done" and last(view)["text"] == "每小时收费七元[1]。" and changed
    assert last(view)["info"].get("absent", []) == (["园区"] if what == "remove_base" else [])


def test_a_file_that_goes_while_the_answer_about_it_is_written(base):
    a, page = base
    scripted = page.backend.answer

    def slow(request, choice):
        a.call("remove_base", "园区")
        return scripted(request, choice)

    page.backend.answer = slow
    view = a.talk(ASKED, bases=["base:园区"])
    assert last(view)["text"] == FOUND
    opened = a.call("source", view["id"], last(view)["id"], 1)
    assert opened["gone"] and any(cited and "八元" in text for p in opened["paragraphs"] for text, cited in p["parts"])


def test_a_citation_of_a_file_that_has_changed(base):
    """It shows where the same words stand now, or what stood there."""
    a, _ = base
    view = a.talk(ASKED, bases=["base:园区"])
    source = ("source", view["id"], last(view)["id"], 1)
    a.upload("base:园区", "规定.md", RULES.replace("八元", "九元").encode())
    a.read("base:园区")
    opened = a.call(*source)
    assert opened["gone"] and any(cited and "八元" in text for p in opened["paragraphs"] for text, cited in p["parts"])
    a.upload("base:园区", "规定.md", ("# 前言\n\n新的一段。\n\n" + RULES).encode())
    a.read("base:园区")
    assert any(cited and "八元" in text for p in a.call(*source)["paragraphs"] for text, cited in p["parts"])


def test_one_file_is_added_by_many_at_once(serve):
    page = serve(answer)
    a, b = page.visitor(), page.visitor()
    places = []
    for who in (a, b):
        who.call("make_base", "园区")
        places += [(who, "base:园区")] * 4
    threads = [threading.Thread(target=who.upload, args=(place, "规定.md", RULES.encode())) for who, place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for who in (a, b):
        found = who.read("base:园区")
        assert [file["name"] for file in found["files"]] == ["规定.md"] and found["jobs"] == []
        assert last(who.talk(ASKED, bases=["base:园区"]))["text"] == FOUND


def test_a_base_that_is_deleted_while_a_file_is_read_stays_deleted(base, monkeypatch):
    reading, go = threading.Event(), threading.Event()

    def read(path, name, limits, progress):
        reading.set()
        go.wait(20)
        return Document(name, "text", (Block("text", "文字"),))

    monkeypatch.setattr("mengya.serve.web.library.read_file", read)
    a, page = base
    a.upload("base:园区", "长.txt", b"x")
    reading.wait(20)
    a.call("remove_base", "园区")
    go.set()
    soon(lambda: not list(page.library.uploads.iterdir()), 20)
    assert a.call("bases") == [] and a.call("files", "base:园区") == {"files": [], "jobs": []}


def test_a_citation_that_goes_on_over_the_page():
    """ragflow#16735: the first of its pages alone was marked."""
    pages = [["第一页的话。", "员工每年休假二十八天，"], ["不含公众假日和周末。", "第二页的话。"], ["第三页的话。"]]
    blocks = tuple(Block("text", text, number) for number, page in enumerate(pages, 1) for text in page)
    document = Document("手册.pdf", "pdf", blocks)
    whole = text_of(document)
    begin, middle, end = whole.index("员工"), whole.index("\n不含"), whole.index("\n第二页")
    places = [{"page": 1, "begin": begin, "end": middle}, {"page": 2, "begin": middle + 1, "end": end}]
    source = {"file": "手册.pdf", "pages": [1, 2], "quote": whole[begin:end].replace("\n", ""), "places": places}
    shown = passage_view(SimpleNamespace(document=lambda name: document), source)
    assert not shown["gone"]
    assert [p["parts"] for p in shown["paragraphs"]] == [
        [("第一页的话。", False)], [("员工每年休假二十八天，", True)],
        [("不含公众假日和周末。", True)], [("第二页的话。", False)],
    ]  # fmt: skip
