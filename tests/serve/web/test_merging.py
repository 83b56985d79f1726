"""Backups of other versions, other times and other hands, taken in beside what is there."""

import json
import sqlite3
import threading

import pytest

from mengya.errors import UserError
from mengya.serve.web import backup
from mengya.serve.web.store import Store

from ..api.scripted import Say, soon
from .test_archive import changed
from .test_store import everything, say, talk


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "c.sqlite3")
    yield made
    made.close()


def edited(store, change):
    """The backup of everything, changed."""
    given = json.loads(everything(store))
    change(given)
    return json.dumps(given)


def texts(store, owner="a"):
    return [[m.text for m in store.get(owner, c.id).branch()] for c in store.all(owner)]


@pytest.mark.parametrize("version", ["mengya-conversations-2", "mengya-backup-1", "chatgpt"])
def test_another_format_is_told_apart(store, version):
    talk(store)
    text = edited(store, lambda given: given.update(format=version, conversations={"other": 1}))
    with pytest.raises(UserError, match=version) as told:
        backup.merge(store, "b", text)
    assert ("update it" in str(told.value)) == (version == "mengya-conversations-2")


def test_a_damaged_conversation_is_named(store):
    """LibreChat#15229: nothing came in, and nothing was said."""
    talk(store, "好的")
    talk(store, "坏的")

    def change(given):
        next(row for row in given["conversations"] if row["title"] == "坏的")["messages"][0]["created"] = "x"

    with pytest.raises(UserError, match="坏的 in this backup is damaged"):
        backup.merge(store, "b", edited(store, change))
    assert store.all("b") == []


def test_what_another_version_adds_or_lacks_does_no_harm(store):
    made = talk(store)
    source = {"id": 1, "file": "a.txt", "quote": "好"}
    store.save("a", store.get("a", made).leaf, "好[1]", "done", {"sources": [source], "tokens": 3})

    def change(given):
        given["new"] = given["conversations"][0]["new"] = {"a": [1]}
        for message in given["conversations"][0]["messages"]:
            message["new"], message["info"]["new"] = 1, {"b": 2}
        for name in ("settings", "leaf"):
            del given["conversations"][0][name]
        del given["conversations"][0]["messages"][0]["info"], given["pictures"]

    assert backup.merge(store, "b", edited(store, change)) == 1
    (own,) = store.all("b")
    question, said = store.get("b", own.id).branch()
    assert (question.info, said.text, said.info["tokens"]) == ({}, "好[1]", 3)
    assert said.info["sources"][0] == source | {
        "pages": [], "headings": [], "text": "", "places": [], "place": "", "knowledge_base": ""
    }  # fmt: skip


@pytest.mark.parametrize(("missing", "left"), [(0, ["一", "二", "乙"]), (1, ["二", "乙"]), (3, ["问", "一", "二"])])
def test_a_message_that_is_missing_takes_no_other_along(store, missing, left):
    made = talk(store, "问", "一")
    two = say(store, made, store.get("a", made).leaf, "user", "二")
    say(store, made, two, "assistant", "乙")
    text = edited(store, lambda given: given["conversations"][0]["messages"].pop(missing))
    assert backup.merge(store, "b", text) == 1 and backup.merge(store, "b", text) == 0
    assert texts(store, "b") == [left]
    assert backup.merge(store, "b", everything(store)) == 1  # what was missing comes later


def test_a_copy_is_a_conversation_of_its_own(store):
    """Of which somebody has changed the id alone."""
    talk(store, "问", "答")
    text = edited(store, lambda given: given["conversations"][0].update(id="another-one", title="副本"))
    assert backup.merge(store, "a", text) == 1 and backup.merge(store, "a", text) == 0
    assert sorted(c.title for c in store.all("a")) == ["副本", "问"] and texts(store) == [["问", "答"]] * 2


def test_an_answer_that_was_being_written_is_taken_in_whole_later(store):
    made = talk(store, "问", "写了")
    other = Store(store._path.with_name("other.sqlite3"))
    answer = store.get("a", made).leaf
    store.save("a", answer, "写了", "answering", {})
    assert backup.merge(other, "a", everything(store)) == 1
    assert other.get("a", made).branch()[-1].state == "stopped"
    store.save("a", answer, "写了全部", "done", {"tokens": 4})
    assert backup.merge(other, "a", everything(store)) == 1 and backup.merge(other, "a", everything(store)) == 0
    assert other.get("a", made) == store.get("a", made)
    store.save("a", answer, "写了全部，又变了", "done", {})  # which no answer does: what is there stays
    assert backup.merge(other, "a", everything(store)) == 0 and texts(other) == [["问", "写了全部"]]
    other.close()


@pytest.mark.parametrize(("newer", "leaf"), [(True, "后来"), (False, "这里")])
def test_both_have_gone_on(store, newer, leaf):
    """Neither loses what it has; the newer one says which branch is in sight, the last who named it its title."""
    made = talk(store, "旧的", "答")
    other = Store(store._path.with_name("other.sqlite3"))
    backup.merge(other, "a", everything(store))
    store.rename("a", made, "早先的")
    other.rename("a", made, "新的")
    now = store.get("a", made).updated
    say(store, made, store.get("a", made).leaf, "user", "后来", created=now + 0.001 * (2 if newer else 1))
    say(other, made, other.get("a", made).leaf, "user", "这里", created=now + 0.0015)
    assert backup.merge(other, "a", everything(store)) == 1
    found = other.get("a", made)
    assert [m.text for m in found.branch()] == ["旧的", "答", leaf] and found.title == "新的"
    assert {m.text for m in found.messages} == {"旧的", "答", "后来", "这里"}
    assert backup.merge(store, "a", everything(other)) == 1 and store.get("a", made).title == "新的"
    assert backup.merge(store, "a", everything(other)) == 0 == backup.merge(other, "a", everything(store))
    other.close()


def test_files_of_older_versions_are_opened(tmp_path):
    made = Store(tmp_path / "c.sqlite3")
    name = talk(made)
    made.close()
    with sqlite3.connect(tmp_path / "c.sqlite3") as db:
        db.execute("ALTER TABLE conversations DROP COLUMN renamed")
    again = Store(tmp_path / "c.sqlite3")
    assert again.get("a", name).renamed == 0
    again.rename("a", name, "新名字")
    assert again.get("a", name).title == "新名字" and again.get("a", name).renamed > 0
    again.close()


def test_a_backup_is_taken_in_while_somebody_chats(serve):
    page = serve(lambda request, choice: [Say(c, wait=0.03) for c in "慢慢地写一个很长的回答"])
    a = page.visitor()
    view = a.talk("问")
    old = a.get("/export.zip").content
    view = a.call("send", view["id"], view["messages"][-1]["id"], "再问", {})
    during = a.get("/export.zip").content
    told, threads = [], []
    for content in (old, during) * 3:
        threads.append(threading.Thread(target=lambda c=content: told.append(a.post("/import", content=c).json())))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert told == [{"value": {"conversations": 0, "files": 0}}] * 6
    view = a.whole(view)
    assert [m["text"] for m in view["messages"]] == ["问", "慢慢地写一个很长的回答", "再问", "慢慢地写一个很长的回答"]
    soon(lambda: not page.answers._open)
    assert a.post("/import", content=during).json()["value"]["conversations"] == 0
    assert a.call("open", view["id"]) == view


def test_lists_of_an_archive_may_be_missing(serve):
    a = serve().visitor()
    a.talk("问")
    content = a.get("/export.zip").content
    for name in ("files", "pictures"):
        content = changed(content, lambda index, name=name: index.pop(name))
    b = serve().visitor()
    assert b.post("/import", content=content).json()["value"] == {"conversations": 1, "files": 0}
    newer = changed(content, lambda index: index.update(format="mengya-backup-2", conversations=5))
    assert "update it" in b.post("/import", content=newer).json()["error"]
