"""Documents over HTTP: files of a conversation and of bases, answers that cite, what is refused."""

import re
import threading
import time

import numpy as np
import pytest

from mengya.rag.document import Block, Document, Page
from mengya.rag.retrieve import Retriever
from mengya.rag.store import Embedder, KnowledgeFolder

from ..api.scripted import Say, Scripted, soon

RULES = "# 停车规定\n\n适用于园区。\n\n## 收费\n\n访客停车每小时收费八元，当天最高六十元。\n\n## 时间\n\n夜间不停。\n"


def answer(request, choice):
    """The passage of the question that has a word of it, quoted with its number; else that nothing is said."""
    content = request.prompt.messages[-1]["content"]
    if content.startswith("资料："):  # it has not learnt to read sentences one by one
        return ["嗯"]
    found = re.search(r"^\[(\d+)\] .*?每小时收费(..)", content, re.DOTALL | re.MULTILINE)
    if "每小时" in content.splitlines()[-1] and found:
        return ["每小时收费", f"{found[2]}[{found[1]}]", "。"]
    return ["资料中没有提到。"] if "问题：" in content else ["没有资料"]


def talk_about(a, files, question="访客停车每小时收费多少？"):
    made = a.call("create", "停车", {})["id"]
    for name, content in files:
        assert a.upload(f"conversation:{made}", name, content).json().keys() == {"value"}
    return a.talk(question, made)


def test_an_answer_cites_the_file_of_its_conversation(serve):
    page = serve(answer)
    a = page.visitor()
    view = talk_about(a, [("规定.md", RULES.encode("gb18030")), ("别的.txt", "食堂中午供应面条。".encode())])
    last = view["messages"][-1]
    assert last["text"] == "每小时收费八元[1]。" and 'data-source="1"' in "".join(last["blocks"])
    assert last["info"]["sources"] == [{"id": 1, "file": "规定.md", "pages": []}] and last["info"]["kind"] == "answer"
    opened = a.call("source", view["id"], last["id"], 1)
    marked = [text for paragraph in opened["paragraphs"] for text, cited in paragraph["parts"] if cited]
    assert "每小时收费八元" in "".join(marked) and not opened["gone"]
    assert "no such source" in a.call("source", view["id"], last["id"], 2)
    assert "规定.md" in a.get(f"/export/{view['id']}.md").text
    b = page.visitor()
    assert "no such" in b.call("source", view["id"], last["id"], 1)


def test_the_system_prompt_goes_with_a_question_about_documents(serve):
    page = serve(answer)
    a = page.visitor()
    made = a.call("create", "停车", {})["id"]
    a.upload(f"conversation:{made}", "规定.md", RULES.encode())
    for system, roles in (("要简短。", ["system", "user"]), ("  ", ["user"])):
        a.talk("访客停车每小时收费多少？", made, system=system)
        asked = page.backend.requests[-1].prompt.messages
        assert [message["role"] for message in asked] == roles and "资料" in asked[-1]["content"]
        assert asked[0]["content"] == system or len(asked) == 1


def test_what_was_cited_stays_true_when_the_file_is_gone(serve):
    a = serve(answer).visitor()
    view = talk_about(a, [("规定.md", RULES.encode())])
    place, last = f"conversation:{view['id']}", view["messages"][-1]["id"]
    a.call("remove_file", place, "规定.md")
    opened = a.call("source", view["id"], last, 1)
    assert opened["gone"] and any(cited for p in opened["paragraphs"] for _, cited in p["parts"])
    assert a.call("files", place)["files"] == [] and "removed" in a.call("remove_file", place, "规定.md")
    assert a.talk("再问", view["id"], last)["messages"][-1]["text"] == "没有资料"
    other = serve(answer).visitor()
    told = other.post("/import", content=a.get("/export.zip").content).json()["value"]
    assert told == {"conversations": 1, "files": 0}
    opened = other.call("source", view["id"], last, 1)
    assert opened["gone"] and "八元" in opened["paragraphs"][0]["parts"][1][0]


def test_a_base_is_asked_where_it_is_chosen(serve):
    page = serve(answer)
    a, b = page.visitor(), page.visitor()
    a.call("make_base", "园区")
    assert "already" in a.call("make_base", "园区") and a.call("bases") == ["base:园区"] and b.call("bases") == []
    a.upload("base:园区", "规定.md", RULES.encode())
    assert [f["name"] for f in a.read("base:园区")["files"]] == ["规定.md"]
    question = "访客停车每小时收费多少？"
    assert a.talk(question)["messages"][-1]["text"] == "没有资料"
    view = a.talk(question, bases=["base:园区", "base:没有的"])
    assert view["messages"][-1]["text"] == "每小时收费八元[1]。" and view["settings"]["bases"] == [
        "base:园区",
        "base:没有的",
    ]
    assert b.talk(question, bases=["base:园区"])["messages"][-1]["text"] == "没有资料"
    assert b.call("files", "base:园区")["files"] == []
    b.call("remove_base", "园区")
    assert a.call("bases") == ["base:园区"]
    a.call("remove_base", "园区")
    assert a.call("bases") == [] and a.call("files", "base:园区")["files"] == []


def test_shared_bases_are_read_by_all_and_changed_by_none(serve, tmp_path):
    shared = KnowledgeFolder(tmp_path / "knowledge").open_or_create("公共")
    shared.add(Document("规定.md", "markdown", (Block("text", "访客停车每小时收费八元。"),)), "hash")
    page = serve(answer, library={"shared": KnowledgeFolder(tmp_path / "knowledge")})
    a = page.visitor()
    assert a.call("bases") == ["shared:公共"]
    assert a.talk("访客停车每小时收费多少？", bases=["shared:公共"])["messages"][-1]["text"] == "每小时收费八元[1]。"
    assert "no place" in a.call("remove_file", "shared:公共", "规定.md")
    assert "no place" in a.upload("shared:公共", "x.txt", b"x").json()["error"]
    a.call("remove_base", "公共")
    assert [file.name for file in shared.files()] == ["规定.md"]


def test_two_bases_of_one_name_are_cited_apart(serve, tmp_path):
    shared = KnowledgeFolder(tmp_path / "knowledge").open_or_create("园区")
    shared.add(Document("规定.md", "markdown", (Block("text", "访客停车每小时收费八元。"),)), "hash")
    page = serve(answer, library={"shared": KnowledgeFolder(tmp_path / "knowledge")})
    a = page.visitor()
    a.call("make_base", "园区")
    a.upload("base:园区", "别的.txt", "电梯每年检查。".encode())
    a.read("base:园区")
    view = a.talk("访客停车每小时收费多少？", bases=["shared:园区", "base:园区"])
    message = view["messages"][-1]
    (source,) = message["info"]["sources"]
    assert source["file"] == "规定.md"
    opened = a.call("source", view["id"], message["id"], source["id"])
    assert not opened["gone"] and "每小时收费八元" in str(opened)


def test_vectors_find_what_words_do_not(serve):
    def cars(texts):
        there = [any(word in text for word in ("停车", "泊位")) for text in texts]
        return np.array([[yes, not yes] for yes in there], "f4")

    embedder = Embedder("cars", cars)
    page = serve(answer, library={"embedder": embedder}, retriever=Retriever(embedder))
    a = page.visitor()
    view = talk_about(a, [("规定.md", "停车每小时收费八元".encode())], "泊位？")
    assert "每小时收费八元" in page.backend.requests[0].prompt.messages[-1]["content"]
    page.site.library._embedder = Embedder("others", cars)
    a.upload(f"conversation:{view['id']}", "c.txt", b"c")
    (job,) = a.read(f"conversation:{view['id']}")["jobs"]
    assert "has vectors of cars, not of others" in job["error"]


def test_what_is_to_be_known_of_pages_is_told(page, monkeypatch):
    """cherry-studio#19095: a page that was not read as it should be looks fine."""
    pages = (Page(1, "text"), Page(2, "text", note="vertical text"), Page(3, "text", note="vertical text"))
    read = Document("a.pdf", "pdf", (Block("text", "字"),), pages, ("it is a form",))
    monkeypatch.setattr("mengya.serve.web.library.read_file", lambda *arguments: read)
    a = page.visitor()
    a.call("make_base", "b")
    a.upload("base:b", "a.pdf", b"x")
    assert a.read("base:b")["files"][0]["notes"] == ["it is a form", "2, 3: vertical text"]


def test_a_base_needs_a_name(page):
    a = page.visitor()
    for name in ("", " ", "\u200b\n"):
        assert "name is empty" in a.call("make_base", name)
    assert a.call("bases") == []


def test_the_same_file_twice_and_a_changed_one(serve):
    a = serve(answer).visitor()
    a.call("make_base", "b")
    for name, content in (("a.txt", b"one"), ("a.txt", b"one"), ("b.txt", b"one"), ("a.txt", b"two words")):
        a.upload("base:b", name, content)
        found = a.read("base:b")
        assert found["jobs"] == []
    assert [f["name"] for f in found["files"]] == ["b.txt", "a.txt"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("leer.txt", b"", "empty"), ("x.pdf", b"%PDF-1.7\nnothing", "x.pdf"),
        ("x.docx", b"PK\x03\x04" + b"0" * 100, "x.docx"),
        ("<img src=x onerror=1>.bin", bytes(range(256)) * 20, "<img src=x"),
        ("程序", b"\x7fELF" + b"\0" * 100, "program"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(page, name, content, words):
    a = page.visitor()
    a.call("make_base", "b")
    a.upload("base:b", name, content)
    (job,) = a.read("base:b")["jobs"]
    assert job["state"] == "error" and words in job["error"] and a.call("files", "base:b")["files"] == []
    page.visitor().call("cancel_file", job["id"])
    assert a.call("files", "base:b")["jobs"] == [job]
    a.call("cancel_file", job["id"])
    assert a.call("files", "base:b")["jobs"] == []


@pytest.mark.parametrize(
    "name",
    [
        "【密】合同（终稿）#1%20.txt", "汉" * 200 + ".txt", "..\\x.txt", "../../x", "/etc/x", "CON.txt", "🌱.txt",
        "e\u0301.txt", "a\u202etxt.exe",
    ],
)  # fmt: skip
def test_names_are_text_and_never_a_path(page, tmp_path, name):
    a = page.visitor()
    made = a.call("create", "x", {})["id"]
    before = {path for path in page.library._folder.parent.rglob("*") if "documents" not in path.parts}
    a.upload(f"conversation:{made}", name, "文字".encode())
    (file,) = a.read(f"conversation:{made}")["files"]
    assert file["name"].endswith(name[-3:]) and len(file["name"]) <= 200
    assert {path for path in page.library._folder.parent.rglob("*") if "documents" not in path.parts} == before
    a.call("remove_file", f"conversation:{made}", file["name"])
    for place in (f"base:{name}", f"conversation:{name}", "x", "", "base:", f"{name}:x"):
        answer = a.upload(place, "a.txt", b"a")
        assert answer.status_code == 200 and (place == f"base:{name}" or "error" in answer.json())


def test_an_upload_too_large_is_refused(page):
    a = page.visitor()
    made = a.call("create", "x", {})["id"]
    for size in (20 * 2**20, 200 * 2**20):
        pieces = (b"0" * 2**20 for _ in range(size >> 20))
        answer = a.post("/files", params={"place": f"conversation:{made}", "name": "大.txt"}, content=pieces)
        assert answer.status_code == 413 and "大.txt is larger than 20 MB" in answer.json()["error"]
    assert a.call("files", f"conversation:{made}") == {"files": [], "jobs": []}
    soon(lambda: not list(page.library.uploads.iterdir()), 20)
    assert a.talk("还在吗")["messages"][-1]["state"] == "done"


def test_a_full_disk_is_said(small_disk, tmp_path):
    from .conftest import Page

    page = Page(small_disk, Scripted(answer))
    try:
        a = page.visitor()
        made = a.call("create", "x", {})["id"]
        told = a.upload(f"conversation:{made}", "大.txt", b"0" * 2_000_000)
        assert told.status_code == 507 and "free space" in told.json()["error"]
        soon(lambda: not list(page.library.uploads.iterdir()), 20)
        assert a.talk("还在吗", made)["messages"][-1]["state"] == "done"
    finally:
        page.stop()


def test_web_addresses_where_they_are_allowed(serve, monkeypatch):
    page = serve(answer, library={"addresses": True})
    a = page.visitor()
    made = a.call("create", "x", {})["id"]
    place = f"conversation:{made}"
    for url in (page.url, "http://[::1]/", "http://2130706433/", "file:///etc/passwd", "x"):
        a.call("add_address", place, url)
        (job,) = a.read(place)["jobs"]
        assert job["state"] == "error" and job["error"].startswith(url[:5])
        a.call("cancel_file", job["id"])
    page_there = Document("y", "html", (Block("text", "访客停车每小时收费八元。"),))
    monkeypatch.setattr("mengya.serve.web.library.read_address", lambda url, limits, progress: page_there)
    a.call("add_address", place, "https://example.org/停车")
    assert [file["name"] for file in a.read(place)["files"]] == ["https://example.org/停车"]
    assert a.talk("访客停车每小时收费多少？", made)["messages"][-1]["text"] == "每小时收费八元[1]。"
    b = serve(answer).visitor()
    assert not b.call("start")["addresses"]
    b.call("make_base", "b")
    assert "no web addresses" in b.call("add_address", "base:b", "https://example.org/")


def test_files_of_another_are_out_of_reach(serve):
    page = serve(answer)
    a, b = page.visitor(), page.visitor()
    view = talk_about(a, [("规定.md", RULES.encode())])
    place = f"conversation:{view['id']}"
    assert "no such" in b.call("files", place) and "no such" in b.call("remove_file", place, "规定.md")
    assert "no such" in b.upload(place, "b.txt", b"b").json()["error"]
    assert [f["name"] for f in a.call("files", place)["files"]] == ["规定.md"]


def test_a_conversation_takes_its_files_along(serve):
    page = serve(answer)
    a = page.visitor()
    view = talk_about(a, [("规定.md", RULES.encode())])
    assert list(page.library._folder.rglob("*.sqlite3"))
    a.call("delete", view["id"])
    assert list(page.library._folder.rglob("*.sqlite3")) == []


def test_a_slow_file_can_be_cancelled_while_others_chat(serve, monkeypatch):
    seen = []

    def slow(path, name, limits, progress):
        for number in range(200):
            seen.append(number)
            progress(number, 200)
            time.sleep(0.02)

    monkeypatch.setattr("mengya.serve.web.library.read_file", slow)
    page = serve(answer)
    a, b = page.visitor(), page.visitor()
    a.call("make_base", "b")
    job = a.upload("base:b", "长.txt", b"x").json()["value"]
    soon(lambda: len(seen) > 5)
    assert b.talk("你好")["messages"][-1]["state"] == "done"
    (shown,) = a.call("files", "base:b")["jobs"]
    assert shown["state"] == "reading" and shown["pages"] == 200 and shown["done"] > 3
    a.call("cancel_file", job)
    soon(lambda: not list(page.library.uploads.iterdir()))
    count = len(seen)
    time.sleep(0.1)
    assert len(seen) == count < 200 and a.call("files", "base:b") == {"files": [], "jobs": []}


def test_stop_while_files_are_read(serve, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr("mengya.serve.web.library.read_file", lambda *arguments: go.wait(20) and 1 / 0)
    backend = Scripted(answer)
    a = serve(backend).visitor()
    made = a.call("create", "x", {})["id"]
    a.upload(f"conversation:{made}", "长.txt", b"x")
    view = a.call("send", made, "", "问", {})
    assert view["messages"][-1]["state"] == "answering"
    a.call("stop", view["messages"][-1]["id"])
    assert a.call("open", made)["messages"][-1]["state"] == "stopped"
    go.set()
    assert "could not be read" in a.read(f"conversation:{made}")["jobs"][0]["error"] and backend.requests == []


def test_stop_while_an_answer_about_documents_is_written(serve):
    backend = Scripted(lambda request, choice: [Say("字", wait=0.02) for _ in range(500)])
    a = serve(backend).visitor()
    made = a.call("create", "x", {})["id"]
    a.upload(f"conversation:{made}", "规定.md", RULES.encode())
    view = a.call("send", made, "", "停车收费多少？", {})
    answer = view["messages"][-1]["id"]
    soon(lambda: "字" in a.call("open", made)["messages"][-1]["text"], 20)
    a.call("stop", answer)
    last = a.call("open", made)["messages"][-1]
    assert last["state"] == "stopped" and set(last["text"]) == {"字"} and last["info"]["sources"] == []
