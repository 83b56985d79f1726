"""Two tabs on one conversation, and readers who come back: nothing is lost, nothing lands where it was not meant."""

import itertools
import threading
import time

import pytest

from ..api.scripted import Say, soon
from .conftest import Visitor


def slow(request, choice):
    """What was asked, said slowly."""
    return [Say(c, wait=0.02) for c in "答：" + request.prompt.messages[-1]["content"]]


@pytest.fixture
def tabs(serve):
    """(a tab, another one of the same user, the page)"""
    page = serve(slow)
    one, two = page.visitor(), Visitor(page.url)
    two.cookies = one.cookies
    return one, two, page


def texts(view):
    return [message["text"] for message in view["messages"]]


def test_both_send(tabs):
    one, two, page = tabs
    view = one.talk("开头")
    last = view["messages"][-1]["id"]
    first = one.call("send", view["id"], last, "甲说的话", {})
    second = two.call("send", view["id"], last, "乙说的话", {})
    assert texts(two.whole(second))[2:] == ["乙说的话", "答：乙说的话"]
    soon(lambda: not page.answers._open, 20)
    question = one.call("choose", view["id"], first["messages"][-1]["id"])["messages"][2]
    assert len(question["beside"]) == 2
    assert texts(one.call("open", view["id"]))[2:] == ["甲说的话", "答：甲说的话"]
    assert len(page.store.get(page.store.read("SELECT owner FROM conversations")[0][0], view["id"]).messages) == 6


def test_one_edits_while_the_answer_of_the_other_is_written(tabs):
    one, two, _page = tabs
    first = one.call("send", "", "", "原来的问题，有些长", {})
    question, answer = first["messages"]
    second = two.call("send", first["id"], question["parent"], "改过", {})
    assert texts(two.whole(second)) == ["改过", "答：改过"]
    told = list(one.events(answer["id"]))[-1]  # as it goes on, whatever branch is in sight
    assert (told["state"], told["text"]) == ("done", "答：原来的问题，有些长")
    view = one.call("choose", first["id"], question["id"])
    assert (
        texts(view) == ["原来的问题，有些长", "答：原来的问题，有些长"]
        and view["messages"][0]["beside"][0] == question["id"]
    )


def test_again_while_the_answer_is_written_and_after_a_stop(tabs):
    one, two, page = tabs
    view = one.call("send", "", "", "一个问题", {})
    answer = view["messages"][-1]["id"]
    again = two.call("again", view["id"], answer, {})
    assert texts(two.whole(again)) == ["一个问题", "答：一个问题"]
    soon(lambda: not page.answers._open, 20)
    third = one.call("again", view["id"], answer, {})["messages"][-1]
    one.call("stop", third["id"])
    fourth = one.whole(one.call("again", view["id"], third["id"], {}))["messages"][-1]
    assert fourth["beside"][0] == answer and fourth["beside"][-1] == fourth["id"] and len(fourth["beside"]) == 4
    states = [one.call("choose", view["id"], each)["messages"][-1]["state"] for each in fourth["beside"]]
    assert states == ["done", "done", "stopped", "done"]


def test_one_renames_while_the_answer_of_the_other_is_written(tabs):
    one, two, _page = tabs
    view = one.call("send", "", "", "一个问题", {})
    two.call("rename", view["id"], "新名字")
    assert one.whole(view)["title"] == "新名字"
    assert texts(one.talk("再问", view["id"], view["messages"][-1]["id"]))[2:] == ["再问", "答：再问"]
    assert [c["title"] for c in one.call("conversations", "")] == ["新名字"]


def test_one_deletes_while_the_answer_of_the_other_is_written(tabs):
    one, two, page = tabs
    view = one.call("send", "", "", "很长的问题" * 50, {})
    answer, lines = view["messages"][-1]["id"], []

    def read():
        with one.stream("GET", f"/answers/{answer}") as stream:
            lines.extend(stream.iter_lines())

    reader = threading.Thread(target=read)
    reader.start()
    soon(lambda: len(lines) > 2, 20)
    two.call("delete", view["id"])
    reader.join(20)
    assert [line for line in lines if line][-2:] == ["event: gone", "data: {}"]
    for call in (("open", view["id"]), ("send", view["id"], answer, "x", {}), ("again", view["id"], answer, {})):
        told = one.ask(*call).json()["data"][0]
        assert told["missing"] and "no such conversation" in told["error"]
    soon(lambda: not page.answers._open, 20)
    assert page.store.read("SELECT count(*) FROM messages")[0][0] == 0


def test_who_comes_back_is_told_the_whole_answer(tabs):
    """A stream that broke off goes on where the reader is, and needs nothing else of the page (jan#4253)."""
    one, two, page = tabs
    view = one.call("send", "", "", "一个问题", {})
    answer = view["messages"][-1]["id"]
    first = next(one.events(answer))
    again = list(two.events(answer))
    assert first["from"] == again[0]["from"] == 0 and again[-1]["text"] == "答：一个问题"
    soon(lambda: not page.answers._open, 20)
    (late,) = one.events(answer)
    assert (late["from"], late["thought_from"], late["state"], late["text"]) == (0, 0, "done", "答：一个问题")
    assert late["blocks"] == ["<p>答：一个问题</p>\n"]


def test_a_crash_leaves_a_stream_that_ends(tabs):
    """oobabooga/textgen#5837: the server was started anew, and the page stayed open."""
    one, _two, page = tabs
    view = one.talk("一个问题")
    answer = view["messages"][-1]["id"]
    owner = page.store.read("SELECT owner FROM conversations")[0][0]
    page.store.save(owner, answer, "写了一半", "answering", {})  # before its thread has begun
    threading.Timer(0.3, lambda: page.store.save(owner, answer, "写了一半", "stopped", {})).start()
    (told,) = one.events(answer)
    assert (told["state"], told["text"]) == ("stopped", "写了一半")


def test_a_title_that_was_given_stays(tabs):
    """claude-code#51642: a title that somebody had chosen was overwritten."""
    one, two, _page = tabs
    made = one.call("create", "合同.pdf", {})["id"]
    assert one.talk("讲了什么？", made)["title"] == "讲了什么？"
    made = one.call("create", "合同.pdf", {})["id"]
    two.call("rename", made, "我的合同")
    view = one.talk("讲了什么？", made)
    assert view["title"] == "我的合同"


def test_the_end_of_a_branch_is_found_whatever_the_clock_says(tabs):
    """LibreChat PR 8262, llama.cpp#16406: what follows was earlier than what it follows, and was not found."""
    one, _two, page = tabs
    view = one.talk("一")
    view = one.talk("二", view["id"], view["messages"][-1]["id"])
    first = view["messages"][0]["id"]
    with page.store.write() as db:
        db.execute("UPDATE messages SET created = -created")
    one.call("send", view["id"], "", "别的", {})
    assert texts(one.call("choose", view["id"], first)) == ["一", "答：一", "二", "答：二"]
    assert time.time() - one.call("conversations", "")[0]["updated"] < 60


def test_who_follows_many_answers_asks_again(serve):
    """freenet-core#5213, Chorus#521: browsers have six connections to a server, and a seventh tab did not open."""
    page = serve(lambda request, choice: [Say("字", wait=0.02) for _ in range(400)])
    a = page.visitor()
    answers = [a.call("send", "", "", f"写{n}", {})["messages"][-1]["id"] for n in range(5)]
    following = [a.events(answer) for answer in answers[:3]]
    assert all(next(told)["state"] == "answering" for told in following)
    for answer in answers[3:]:
        once = a.get(f"/answers/{answer}").text
        assert once.count("data:") == 2 and '"answering"' in once and once.endswith("event: later\ndata: {}\n\n")
    following.pop().close()
    soon(lambda: len(list(itertools.islice(a.events(answers[3]), 2))) == 2, 10)  # as one of them has gone
