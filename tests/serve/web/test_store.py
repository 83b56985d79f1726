"""Conversations on disk: trees, owners, search, many writers, backups."""

import json
import sqlite3
import threading
import time

import pytest

from mengya.errors import UserError
from mengya.serve.web import backup
from mengya.serve.web.markdown import to_markdown
from mengya.serve.web.settings import Settings
from mengya.serve.web.store import TITLE, Message, Missing, Store, found_in, new_id


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "c.sqlite3")
    yield made
    made.close()


def say(store, conversation, parent, role, text, owner="a", created=None) -> str:
    message = Message(new_id(), parent, role, text, "done", created or time.time())
    store.add(owner, conversation, [message])
    return message.id


def talk(store, text="你好", answer="好", owner="a") -> str:
    made = store.create(owner, text, Settings("m", "简短").kept())
    question = say(store, made, None, "user", text, owner)
    say(store, made, question, "assistant", answer, owner)
    return made


def test_an_answer_that_is_written_again_keeps_the_earlier_branch(store):
    made = talk(store, "问", "一")
    first = store.get("a", made)
    question, one = first.branch()
    later = say(store, made, one.id, "user", "再问")
    two = say(store, made, question.id, "assistant", "二")
    found = store.get("a", made)
    assert [m.text for m in found.branch()] == ["问", "二"]
    assert found.beside(found.branch()[1]) == [one.id, two]
    store.choose("a", made, found.end_of(one.id))
    assert [m.text for m in store.get("a", made).branch()] == ["问", "一", "再问"]
    assert store.get("a", made).leaf == later


def test_everything_of_another_is_missing(store):
    made = talk(store)
    message = Message(new_id(), None, "user", "偷", "done", 1.0)
    for attempt in (
        lambda: store.get("b", made),
        lambda: store.rename("b", made, "x"),
        lambda: store.choose("b", made, "x"),
        lambda: store.set("b", made, {}),
        lambda: store.add("b", made, [message]),
        lambda: store.delete("b", made),
    ):
        with pytest.raises(Missing):
            attempt()
    answer = store.get("a", made).branch()[1]
    store.save("b", answer.id, "偷", "done", {})
    assert store.get("a", made).branch()[1] == answer and store.all("b") == []


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("违约", True),
        ("金", True),
        ("合同 百分", True),
        ("合同 没有", False),
        ("%", False),
        ("_", False),
        ("思量", False),
    ],
)
def test_search_finds_short_words_and_no_thoughts(store, search, found):
    made = talk(store, "合同违约金为百分之五", "<think>思量</think>对")
    store.save("a", store.get("a", made).leaf, "<think>思量</think>对", "done", {})
    assert [c.id for c in store.all("a", search)] == ([made] if found else [])
    assert store.all("b", search) == []


@pytest.mark.parametrize(
    ("text", "search"),
    [("É T É", "é"), ("ＡＢＣ全角", "abc"), ("國際論壇", "国际"), ("国际论坛", "國際")]
    + [(text, text) for text in ("100%", "a_b", '他说"好"', "🌱", "C:\\temp", "don't", "cafe\u0301")],
)
def test_search_finds_every_way_of_writing(store, text, search):
    """As documents are found (charabia#331)."""
    made = talk(store, f"一 {text} 二", "答")
    talk(store, "别的", "话")
    assert [c.id for c in store.all("a", search)] == [made]


def test_deleting_leaves_nothing(store, tmp_path):
    made = talk(store)
    store.delete("a", made)
    with sqlite3.connect(tmp_path / "c.sqlite3") as db:
        assert [db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("conversations", "messages")] == [0, 0]


def test_titles_are_one_line_and_not_empty(store):
    made = talk(store, "很长\n" * 100)
    assert len(store.all("a")[0].title) == TITLE and "\n" not in store.all("a")[0].title
    with pytest.raises(UserError, match="empty"):
        store.rename("a", made, " \n ")


def test_a_title_can_be_seen(store):
    made = talk(store, "\u202e\u200b", "答")
    assert store.get("a", made).title == "…"
    store.rename("a", made, "a\x00\u202eb👨\u200d👩\u200d👧")
    assert store.get("a", made).title == "ab👨\u200d👩\u200d👧"
    with pytest.raises(UserError, match="empty"):
        store.rename("a", made, "\u200b")


def test_the_message_that_a_search_has_found(store):
    """The branch in sight first, then the last; what was thought is not searched."""
    made = talk(store, "苹果和梨", "<think>葡萄</think>红苹果")
    question, one = store.get("a", made).branch()
    later = say(store, made, one.id, "user", "苹果，Ｇrün")
    other = say(store, made, question.id, "assistant", "苹果很红")  # the branch in sight ends here
    kept = store.get("a", made)
    found = [found_in(kept, search) for search in ("梨", "苹果", "苹果 grün", "grün", "葡萄", "没有", "")]
    assert [m and m.id for m in found] == [question.id, other, later, later, None, None, None]


@pytest.mark.parametrize("search", ["问 " * 5000, "问" * 60_000, "\0", "%", "_"])
def test_any_search_has_an_answer(store, search):
    talk(store, "问" * 100, "答")
    assert len(store.all("a", search)) == (0 if search in "%_" or len(search) > 50_000 else 1)


def test_what_a_crash_broke_off_is_stopped(store, tmp_path):
    made = talk(store)
    store.save("a", store.get("a", made).leaf, "写了一半", "answering", {})
    again = Store(tmp_path / "c.sqlite3")
    last = again.get("a", made).branch()[-1]
    again.close()
    assert (last.state, last.text) == ("stopped", "写了一半")


def test_many_writers_and_readers_lose_nothing(store, tmp_path):
    made, errors = talk(store), []
    root = store.get("a", made).leaf

    def work(write: bool) -> None:
        try:
            for number in range(5):
                if write:
                    say(store, made, root, "user", f"{number}")
                else:
                    store.get("a", made)
        except Exception as error:  # collected
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(40)]
    blocker = sqlite3.connect(tmp_path / "c.sqlite3", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for thread in threads:
        thread.start()
    time.sleep(2)
    blocker.execute("COMMIT")
    blocker.close()
    for thread in threads:
        thread.join()
    assert errors == [] and len(store.get("a", made).messages) == 2 + 20 * 5


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "c.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="--data"):
        Store(tmp_path / "c.sqlite3")


def everything(store):
    return backup.to_json([store.get("a", listed.id) for listed in store.all("a")])


def test_a_backup_comes_back_the_same(store, tmp_path):
    made = talk(store, "问", "<think>想</think>答")
    text = everything(store)
    other = Store(tmp_path / "other.sqlite3")
    assert backup.merge(other, "a", text) == 1
    assert other.get("a", made) == store.get("a", made)
    assert backup.merge(other, "a", text) == 0
    other.close()


def test_a_backup_never_replaces_what_is_newer(store):
    made = talk(store, "问", "答")
    old = everything(store)
    store.rename("a", made, "新名字")
    new = say(store, made, store.get("a", made).leaf, "user", "后来")
    assert backup.merge(store, "a", old) == 0
    found = store.get("a", made)
    assert (found.title, found.leaf, len(found.messages)) == ("新名字", new, 3)


def test_a_newer_backup_adds_what_is_missing(store, tmp_path):
    made = talk(store)
    other = Store(tmp_path / "other.sqlite3")
    backup.merge(other, "a", everything(store))
    say(store, made, store.get("a", made).leaf, "user", "后来")
    assert backup.merge(other, "a", everything(store)) == 1
    assert other.get("a", made) == store.get("a", made)
    other.close()


def test_a_backup_of_somebody_else_gets_ids_of_its_own(store):
    made = talk(store, "甲的", "答")
    text = everything(store)
    assert backup.merge(store, "b", text) == 1 and backup.merge(store, "b", text) == 0
    (own,) = store.all("b")
    assert own.id != made and [m.text for m in store.get("b", own.id).branch()] == ["甲的", "答"]
    assert [m.text for m in store.get("a", made).branch()] == ["甲的", "答"]


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", '{"format": "mengya-conversations-1", "conversations": [{}]}', '{"format": "other", '
        '"conversations": []}', "[" * 100_000, '{"format": "mengya-conversations-1", "conversations": 5}',
    ],
)  # fmt: skip
def test_what_is_no_backup_changes_nothing(store, text):
    with pytest.raises(UserError):
        backup.merge(store, "a", text)
    assert store.all("a") == []


def test_a_hostile_backup(store):
    made = talk(store)
    given = json.loads(everything(store))["conversations"][0]
    one, two = given["messages"]
    for changes in (
        {"id": "../../x" * 3}, {"messages": [one | {"role": "system"}]}, {"updated": float("inf")}, {"title": 5},
        {"settings": []}, {"messages": [one | {"text": None}]}, {"created": 10**400}, {"settings": {"seed": 10**30}},
        {"messages": [one | {"info": {"tokens": 10**30}}]}, {"messages": [one | {"info": {"seconds": float("nan")}}]},
    ):  # fmt: skip
        text = json.dumps({"format": backup.FORMAT, "conversations": [given | changes]})
        with pytest.raises(UserError):
            backup.merge(store, "b", text)
    for settings in ({"bases": 5}, {"system": {"a": 1}}, {"temperature": "x"}):
        text = json.dumps({"format": backup.FORMAT, "conversations": [given | {"settings": settings}]})
        backup.merge(store, "c", text)
        (own,) = store.all("c")
        assert own.settings == {}
        store.delete("c", own.id)
    circle = [one | {"parent": two["id"]}, two]
    text = json.dumps({"format": backup.FORMAT, "conversations": [given | {"messages": circle, "updated": 9e12}]})
    backup.merge(store, "b", text)
    (own,) = store.all("b")
    assert store.get("b", own.id).messages == () and own.updated <= time.time()
    assert len(store.get("a", made).messages) == 2


def test_markdown_has_the_branch_without_thoughts(store):
    made = talk(store, "问", "<think>想</think>答")
    text = to_markdown(store.get("a", made))
    assert "问" in text and "答" in text and "想" not in text


def test_code_that_is_left_open_ends_with_its_message(store):
    for text, end in (
        ("```py\nx = 1", "\n```"), ("````md\n```\nx", "\n````"), ("~~~\nx\n```", "\n~~~"), ("```\nx\n```", ""),
        ("```x``` y", ""), ("    ```", ""),
    ):  # fmt: skip
        made = talk(store, text, "答")
        assert f"\n\n{text}{end}\n\n**Model**\n" in to_markdown(store.get("a", made)), text


def test_all_lines_of_a_quotation_are_quoted(store):
    made = talk(store)
    source = {"id": 1, "file": "a.txt", "pages": [2], "quote": "一\n\n# 二"}
    store.save("a", store.get("a", made).leaf, "答", "done", {"sources": [source]})
    assert to_markdown(store.get("a", made)).endswith("> [1] a.txt, p. 2: 一\n> \n> # 二\n")
