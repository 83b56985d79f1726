"""Answers that belong to the server: they go on without a reader, stop at once, and are saved."""

import contextlib
import threading
import time

import pytest

from mengya.errors import UserError
from mengya.infer.backends import listening
from mengya.infer.request import Conversation, Sampling
from mengya.rag.reading.limits import Limits
from mengya.serve.web import actions
from mengya.serve.web.actions import Actions
from mengya.serve.web.answers import Answers, fitted
from mengya.serve.web.library import Library
from mengya.serve.web.settings import Settings
from mengya.serve.web.store import Store

from ..api.scripted import Say, Scripted, refuse_with, soon


class Talk:
    """What one owner does, without a server."""

    def __init__(self, folder, backend, owner="a"):
        self.store = Store(folder / "c.sqlite3")
        self.answers = Answers(self.store)
        library = Library(folder / "documents", Limits())
        self.actions = Actions(self.store, self.answers, library, {backend.name: backend}, Sampling())
        self.owner = owner

    def send(self, text, conversation="", parent="", wait=True, **settings):
        view = self.actions.send(self.owner, conversation, parent, text, settings)
        return self.whole(view["id"]) if wait else view

    def whole(self, conversation):
        soon(lambda: self.last(conversation)["state"] != "answering", 20)
        soon(lambda: not self.answers._open, 20)
        return self.actions.open(self.owner, conversation)

    def last(self, conversation):
        return self.actions.open(self.owner, conversation)["messages"][-1]


@pytest.fixture
def talk(tmp_path):
    made = []

    def start(given=None, **more):
        backend = given if isinstance(given, Scripted) else Scripted(given) if given else Scripted()
        made.append(Talk(tmp_path, backend, **more))
        return made[-1], backend

    yield start
    for each in made:
        each.answers.close()
        each.store.close()


class Slow(Scripted):
    """A thousand pieces, and how many of them were made."""

    def __init__(self, **more):
        super().__init__(lambda request, choice: [Say("字", wait=0.01) for _ in range(1000)], **more)
        self.said = 0

    def submit(self, request, deliver):
        def counted(piece):
            self.said += bool(piece.text)
            deliver(piece)

        return super().submit(request, counted)


def test_an_answer_is_saved_with_its_figures(talk):
    one, backend = talk()
    view = one.send("你好", system="简短", temperature=0.1)
    question, answer = view["messages"]
    assert (question["text"], answer["text"], answer["state"]) == ("你好", "你好，0！", "done")
    assert answer["info"]["tokens"] == 5 and answer["info"]["model"] == "sprout" and answer["info"]["seconds"] >= 0
    (request,) = backend.requests
    assert request.prompt == Conversation([{"role": "system", "content": "简短"}, {"role": "user", "content": "你好"}])
    assert request.sampling.temperature == 0.1 and view["settings"]["system"] == "简短"


def test_thoughts_are_not_told_again(talk):
    one, backend = talk(lambda request, choice: ["<thi", "nk>想", "</think>", "答"])
    view = one.send("一")
    answer = view["messages"][-1]
    assert (answer["thought"], answer["text"]) == ("想", "答")
    one.send("二", view["id"], answer["id"])
    assert [m["content"] for m in backend.requests[1].prompt.messages] == ["一", "答", "二"]


@pytest.mark.parametrize("after", [0, 3])
def test_stop(talk, after):
    one, backend = talk(Slow(slots=1 if after else 0))  # no slot: it waits before the first token
    view = one.send("写", wait=False)
    answer = view["messages"][-1]["id"]
    soon(lambda: backend.said >= after and len(backend.requests) == 1)
    for _ in range(2):
        one.actions.stop("a", answer)
    count = backend.said
    assert one.last(view["id"])["state"] == "stopped"
    shown = one.whole(view["id"])["messages"][-1]
    time.sleep(0.2)
    assert backend.said <= count + 1 and backend.cancels == 1
    assert shown["state"] == "stopped" and len(shown["text"]) <= count + 1 and bool(shown["text"]) == bool(after)


def test_stop_while_a_server_has_not_begun(talk):
    """Submitting to a server elsewhere takes until its first byte."""
    begun, go = threading.Event(), threading.Event()

    def refuse(request):
        begun.set()
        go.wait(20)

    one, backend = talk(Scripted(refuse=refuse))
    view = one.send("写", wait=False)
    begun.wait(20)
    one.actions.stop("a", view["messages"][-1]["id"])
    assert one.last(view["id"])["state"] == "stopped"
    go.set()
    assert one.whole(view["id"])["messages"][-1]["state"] == "stopped" and backend.cancels == 1


def test_an_answer_lands_where_it_was_asked(talk):
    one, _ = talk(lambda request, choice: [Say(c, wait=0.02) for c in "答：" + request.prompt.messages[-1]["content"]])
    first = one.send("甲的问题", wait=False)
    second = one.send("乙", wait=False)
    assert one.whole(first["id"])["messages"][-1]["text"] == "答：甲的问题"
    assert one.whole(second["id"])["messages"][-1]["text"] == "答：乙"
    assert [len(one.store.get("a", v["id"]).messages) for v in (first, second)] == [2, 2]


def test_again_and_edit_keep_the_earlier_branch(talk):
    one, backend = talk(lambda request, choice: [f"{len(backend.requests)}"])
    view = one.send("一")
    question, answer = view["messages"]
    view = one.whole(one.actions.again("a", view["id"], answer["id"], {})["id"])
    assert view["messages"][-1]["text"] == "2" and len(view["messages"][-1]["beside"]) == 2
    view = one.send("改过", view["id"], question["parent"])
    assert [m["text"] for m in view["messages"]] == ["改过", "3"] and len(view["messages"][0]["beside"]) == 2
    view = one.actions.choose("a", view["id"], question["id"])
    assert [m["text"] for m in view["messages"]] == ["一", "2"]
    view = one.actions.choose("a", view["id"], answer["id"])
    assert [m["text"] for m in view["messages"]] == ["一", "1"]
    with pytest.raises(UserError, match="only an answer"):
        one.actions.again("a", view["id"], question["id"], {})


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (Scripted(refuse=refuse_with("the template refuses this")), "the template refuses this"),
        (Scripted(lambda request, choice: ["半", Say(error="the engine died")]), "the engine died"),
        (Scripted(lambda request, choice: 1 / 0), None),
    ],
)
def test_a_backend_that_fails(talk, backend, words):
    one, _ = talk(backend)
    if words is None:  # its thread dies, as an engine's may, and nothing comes any more: stop still works
        view = one.send("问", wait=False)
        one.actions.stop("a", view["messages"][-1]["id"])
        assert one.last(view["id"])["state"] == "stopped"
        return
    answer = one.send("问")["messages"][-1]
    assert answer["state"] == "error" and words in answer["info"]["error"]
    assert answer["text"] in ("", "半")


def test_a_backend_that_dies_without_a_word(talk, monkeypatch):
    """charmbracelet/crush#2804: nothing comes any more, and nobody says so."""
    monkeypatch.setattr(listening, "_LOOK", 0.05)
    one, backend = talk(lambda request, choice: 1 / 0)
    answer = one.send("问")["messages"][-1]
    assert answer["state"] == "error" and "has stopped working on this answer" in answer["info"]["error"]
    backend.answer = lambda request, choice: [Say("慢", wait=0.4)]  # which is not dead
    assert one.send("问")["messages"][-1]["text"] == "慢"


def test_a_full_context_forgets_the_oldest_turns():
    backend = Scripted(context=40)
    turns = [{"role": r, "content": "字" * 8} for r in ("user", "assistant", "user", "assistant", "user")]
    assert fitted(backend, "系", turns, 10) == [{"role": "system", "content": "系"}, *turns[2:]]
    with pytest.raises(UserError, match="shorten"):
        fitted(backend, "系" * 30, turns, 10)


def test_a_long_conversation_is_not_counted_turn_by_turn():
    """open-webui 23418: minutes went by before the model was asked."""
    backend, counted = Scripted(context=100), []
    encode = backend.encode
    backend.encode = lambda prompt: counted.append(1) or encode(prompt)
    turns = [{"role": r, "content": "字" * 10} for _ in range(1000) for r in ("user", "assistant")]
    turns.append({"role": "user", "content": "字" * 10})
    assert fitted(backend, "", turns, 10) == turns[-9:] and len(counted) < 20


def test_a_long_conversation_is_not_drawn_anew_with_each_question(talk, monkeypatch):
    """open-webui 5032: sending took minutes after some ninety messages."""
    one, _ = talk(lambda request, choice: [f"回答 {request.prompt.messages[-1]['content']}，一次"])
    drawn, draw = [], actions.blocks
    monkeypatch.setattr(actions, "blocks", lambda text, sources: drawn.append(text) or draw(text, sources))
    view = one.send("0")
    assert "回答 0，一次" in drawn
    drawn.clear()
    view = one.send("1", view["id"], view["messages"][-1]["id"])
    assert view["messages"][1]["blocks"] == ["<p>回答 0，一次</p>\n"]
    assert "回答 1，一次" in drawn and "回答 0，一次" not in drawn


def test_a_question_without_an_answer_is_not_told(talk):
    one, backend = talk(lambda request, choice: [Say(error="x")] if len(backend.requests) == 1 else ["好"])
    view = one.send("一")
    one.send("二", view["id"], view["messages"][-1]["id"])
    assert [m["content"] for m in backend.requests[1].prompt.messages] == ["二"]


def test_another_owner_reaches_nothing(talk):
    one, _ = talk(Slow())
    view = one.send("私事", wait=False)
    answer = view["messages"][-1]["id"]
    for attempt in (
        lambda: one.actions.open("b", view["id"]),
        lambda: one.actions.choose("b", view["id"], answer),
        lambda: one.actions.again("b", view["id"], answer, {}),
        lambda: one.actions.send("b", view["id"], answer, "x", {}),
        lambda: one.actions.rename("b", view["id"], "x"),
        lambda: one.actions.delete("b", view["id"]),
    ):
        with pytest.raises(UserError, match="no such"):
            attempt()
    one.actions.stop("b", answer)
    assert one.last(view["id"])["state"] == "answering" and one.actions.conversations("b", "") == []
    assert one.answers.get("b", answer) is None
    one.actions.stop("a", answer)


def test_an_answer_in_another_conversation_is_no_parent(talk):
    one, _ = talk()
    first, second = one.send("一"), one.send("二")
    with pytest.raises(UserError, match="no such"):
        one.actions.send("a", second["id"], first["messages"][-1]["id"], "x", {})
    with pytest.raises(UserError, match="no such"):
        one.actions.choose("a", second["id"], first["messages"][-1]["id"])


def test_a_conversation_that_is_deleted_stops_its_answer(talk):
    one, backend = talk(Slow())
    view = one.send("写", wait=False)
    soon(lambda: backend.said > 0)
    one.actions.delete("a", view["id"])
    soon(lambda: not one.answers._open, 20)
    assert backend.cancels == 1 and one.store.all("a") == []


def test_no_more_than_a_few_answers_at_once(talk):
    one, _ = talk(Slow(slots=0))
    views = [one.send(f"{n}", wait=False) for n in range(9)]
    assert [v["messages"][-1]["state"] for v in views] == ["answering"] * 8 + ["error"]
    assert "too many" in views[-1]["messages"][-1]["info"]["error"]


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -1}, {"temperature": "heiß"}, {"top_p": 0}, {"seed": 1.5}, {"max_new_tokens": 0}, {"system": 5},
        {"model": 5}, {"system": "字" * 30_000}, {"max_new_tokens": 10**30}, {"top_k": 10**30},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_told(given):
    with pytest.raises(UserError):
        Settings.read(given, Sampling())


@pytest.mark.parametrize("text", ["", " \n", "\u200b\ufeff", "字" * 500_000])
def test_a_message_must_say_something(talk, text):
    one, _ = talk()
    with pytest.raises(UserError):
        one.send(text)


def test_a_full_disk_loses_no_answer(small_disk):
    backend = Scripted(lambda request, choice: [Say("字" * 1000, wait=0.02) for _ in range(30)])
    backend.context = 10**9
    one = Talk(small_disk, backend)
    view = one.send("一", wait=False)
    answer = one.answers.get("a", view["messages"][-1]["id"])
    soon(lambda: answer.text, 20)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"0" * 4096)
    soon(lambda: answer.state == "done" and "not saved" in (answer.error or ""), 20)
    assert len(answer.text) == 30_000
    ballast.unlink()
    saved = one.whole(view["id"])["messages"][-1]
    one.store.close()
    assert len(saved["text"]) == 30_000 and "error" not in saved["info"]
