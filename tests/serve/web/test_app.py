"""The application over HTTP: who may do what, and what it never hands out."""

import contextlib
import hashlib
import io
import json
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from mengya.serve.api.keys import Keys
from mengya.serve.web.store import Store
from mengya.serve.web.users import Guesses, Users, secret_of

from ..api.scripted import Say, soon
from .conftest import SECRET, Visitor


def index_of(content):
    return json.loads(zipfile.ZipFile(io.BytesIO(content)).read("mengya.json"))


def test_a_conversation_is_found_again(page):
    a = page.visitor()
    view = a.talk("你好")
    assert [m["text"] for m in view["messages"]] == ["你好", "你好，0！"]
    assert [c["title"] for c in a.call("conversations", "")] == ["你好"]
    assert a.call("start")["models"][0]["name"] == "sprout"
    again = Visitor(page.url)
    again.cookies = a.cookies
    assert again.call("open", view["id"])["messages"] == view["messages"]


def test_growth_is_told_block_by_block(serve):
    page = serve(lambda request, choice: [Say(c, wait=0.02) for c in "<think>想</think>一段\n\n二段**粗**\n"])
    a = page.visitor()
    answer = a.call("send", "", "", "讲", {})["messages"][-1]["id"]
    shown, thought, states = [], "", []
    for told in a.events(answer):
        shown[told["from"] :] = told["blocks"]
        thought = thought[: told["thought_from"]] + told["thought"]
        states.append(told["state"])
    assert shown == ["<p>一段</p>\n", "<p>二段<strong>粗</strong></p>\n"] and thought == "想"
    assert len(states) > 3 and states[-1] == "done" and set(states[:-1]) == {"answering"}
    soon(lambda: not page.answers._open)
    (whole,) = a.events(answer)
    assert whole["blocks"] == shown and (whole["from"], whole["text"]) == (0, "一段\n\n二段**粗**")


def test_another_visitor_reaches_nothing(page):
    a, b = page.visitor(), page.visitor()
    view = a.talk("私事")
    made, answer = view["id"], view["messages"][-1]["id"]
    calls = [
        ("open", made), ("rename", made, "x"), ("delete", made), ("choose", made, answer), ("again", made, answer, {}),
        ("send", made, answer, "x", {}),
    ]  # fmt: skip
    for call in calls:
        assert "no such" in b.call(*call), call
    b.call("stop", answer)
    assert b.call("conversations", "") == []
    assert b.get(f"/export/{made}.md").status_code == b.get(f"/export/{made}.json").status_code == 404
    assert index_of(b.get("/export.zip").content)["conversations"] == []
    assert b.get(f"/answers/{answer}").text.startswith("event: gone")
    assert a.call("open", made) == view


def test_ten_at_once_do_not_disturb_each_other(serve):
    page = serve(lambda request, choice: [Say(c, wait=0.005) for c in "回" + request.prompt.messages[-1]["content"]])
    found = {}

    def chat(number: int) -> None:
        visitor = page.visitor()
        view = visitor.talk(f"我是{number}号")
        view = visitor.talk(f"还是{number}", view["id"], view["messages"][-1]["id"])
        found[number] = [m["text"] for m in view["messages"]]

    threads = [threading.Thread(target=chat, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [f"我是{n}号", f"回我是{n}号", f"还是{n}", f"回还是{n}"] for n in range(10)}


@pytest.mark.parametrize(
    "path",
    [
        "/gradio/gradio_api/file=/etc/passwd", "/gradio/gradio_api/file=../config",
        "/gradio/gradio_api/file/etc/passwd",
        "/gradio/gradio_api/file=http://169.254.169.254/", "/gradio/gradio_api/file=https://example.org/a.png",
        "/gradio/gradio_api/proxy=https://example.org/", "/gradio/", "/gradio", "/gradio/config",
        "/gradio/gradio_api/info",
        "/gradio/gradio_api/vibe-code", "/gradio/gradio_api/queue/data", "/file=/etc/passwd", "/page/app.py",
        "/page/index.html", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/conversations.sqlite3", "/docs",
        "/openapi.json",
    ],
)  # fmt: skip
def test_no_file_and_no_address_is_handed_out(page, path):
    a = page.visitor()
    assert a.get(path).status_code == 404
    assert a.post(path, json={"data": []}).status_code in (404, 405)


@pytest.mark.parametrize("name", ["upload", "run/nothing", "call/start", "api/start", "queue/join", "reset"])
def test_gradio_answers_to_our_calls_alone(page, name):
    assert page.visitor().post(f"/gradio/gradio_api/{name}", json={"data": []}).status_code == 404


def test_values_of_another_type_are_refused(page):
    a = page.visitor()
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for name, values in (
        ("rename", ["x"]), ("rename", ["x", 5]), ("rename", [file, "x"]), ("send", ["", "", "x", file]),
        ("send", ["", "", "x", {"a": file}]), ("send", ["", "", "x", []]), ("open", [None]),
        ("open", [{"url": "https://example.org/"}]),
    ):  # fmt: skip
        assert a.ask(name, *values).status_code == 400, (name, values)
    for body in (b"", b"{", b"[]", b'{"data": 5}', b"[" * 100_000, b"\xff"):
        assert a.post("/gradio/gradio_api/run/start", content=body).status_code == 400
    assert a.post("/gradio/gradio_api/run/start", content=b" " * 5_000_000).status_code == 413
    assert "texts" in a.call("send", "", "", "x", {"system": 5})


def test_nobody_without_a_cookie(page):
    a = page.visitor()
    a.cookies.clear()
    for cookie in ("", "x", "a.b.c", f"{'61':>8}.9999999999.{'0' * 64}", "\x7f", "😀"):
        headers = {"Cookie": f"{page.site.users.cookie}={cookie}".encode()}
        assert a.post("/gradio/gradio_api/run/start", json={"data": []}, headers=headers).status_code == 401
        assert a.get("/export.zip", headers=headers).status_code == 401


def test_halves_of_characters_do_no_harm(page):
    """JSON spells them, no encoding has them: stored as they are, nothing beside them could be shown again."""
    a = page.visitor()
    made = a.talk("你好")["id"]
    calls = {
        "send": ["", "", "好\ud83d", {"system": "\ud83d", "bases": ["\ud83d"], "pictures": ["\ud83d"]}],
        "rename": [made, "\ud83d"], "create": ["\ud83d", {}], "conversations": ["\ud83d"], "open": ["\ud83d"],
        "choose": [made, "\ud83d"], "make_base": ["\ud83d"], "files": ["\ud83d"], "source": [made, "\ud83d", 1],
        "remove_file": ["base:\ud83d", "\ud83d"], "add_address": ["\ud83d", "\ud83d"],
    }  # fmt: skip
    for name, values in calls.items():
        spelt, headers = json.dumps({"data": values}), {"Content-Type": "application/json"}
        answer = a.post(f"/gradio/gradio_api/run/{name}", content=spelt, headers=headers)
        assert answer.status_code == 200 and "its log says" not in answer.text, (name, answer.text)
    assert a.call("bases") == ["base:\ufffd"]
    assert {"好\ufffd", "\ufffd"} <= {c["title"] for c in a.call("conversations", "")}


def test_a_number_too_large_is_said_and_not_stored(page):
    a = page.visitor()
    assert "out of range" in a.call("send", "", "", "x", {"max_new_tokens": 10**30})
    assert a.call("conversations", "") == []


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/page/page.css", 200), ("/nothing", 404)])
def test_the_head_alone(page, path, status):
    """What watches over servers asks for it."""
    answer = page.visitor().head(path)
    assert answer.status_code == status and not answer.content


def test_pages_of_other_sites_may_not_ask(page):
    a = page.visitor()
    for headers in (
        {"Origin": "https://evil.test"}, {"Origin": "null"}, {"Origin": "http://[::1"}, {"Sec-Fetch-Site": "cross-site"}
    ):  # fmt: skip
        answer = a.post("/gradio/gradio_api/run/conversations", json={"data": [""]}, headers=headers)
        assert answer.status_code == 403
        assert a.post("/import", content=b"{}", headers=headers).status_code == 403
    assert a.post("/import", content=b"{}", headers={"Origin": page.url}).status_code == 200


def test_other_names_of_the_machine_are_refused(serve):
    page = serve(hosts=["127.0.0.1", "localhost"])
    a = page.visitor()
    assert a.get("/").status_code == 200
    assert a.get("/", headers={"Host": "evil.test"}).status_code == 403


def test_headers_keep_a_browser_at_home(page):
    for path in ("/", "/page/page.js", "/export.zip", "/nothing"):
        headers = page.visitor().get(path).headers
        assert "img-src 'self' data:" in headers["content-security-policy"]
        assert "script-src 'self';" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"


def test_names_are_text_in_every_download(page):
    a = page.visitor()
    view = a.talk("<img src=x onerror=1>\r\nSet-Cookie: x=1")
    answer = a.get(f"/export/{view['id']}.md")
    assert "\r" not in answer.headers["content-disposition"] and "set-cookie" not in answer.headers
    assert answer.headers["content-type"].startswith("text/markdown")


def test_a_backup_goes_out_and_in(page):
    a, b = page.visitor(), page.visitor()
    made = a.talk("备份")["id"]
    answer = a.get("/export.zip")
    assert answer.headers["content-type"] == "application/zip" and int(answer.headers["content-length"]) > 200
    for content in (answer.content, a.get(f"/export/{made}.json").content):
        told = b.post("/import", content=content).json()["value"]
        assert told == {"conversations": int(content is answer.content), "files": 0}
    assert [c["title"] for c in b.call("conversations", "")] == ["备份"]
    assert "no backup" in b.post("/import", content=b"\xff\xfe").json()["error"]


def keys() -> Keys:
    return Keys({hashlib.sha256(word).hexdigest(): word.decode()[:3] for word in (b"amy-key", b"bob-key")})


def test_an_export_has_the_answer_that_has_just_ended(serve, monkeypatch):
    page = serve()
    save = page.answers._save_for_good
    monkeypatch.setattr(page.answers, "_save_for_good", lambda answer: (time.sleep(0.3), save(answer)))
    a = page.visitor()
    view = a.talk("你好")
    said = view["messages"][-1]["text"]
    assert said and said in a.get(f"/export/{view['id']}.md").text
    view = a.talk("再来", view["id"], view["messages"][-1]["id"])
    assert index_of(a.get("/export.zip").content)["conversations"][0]["messages"][-1]["text"] == said


def test_with_keys_nobody_enters_without_one(serve):
    page = serve(keys=keys())
    a = page.visitor()
    assert 'name="key"' in a.get("/").text and a.ask("conversations", "").status_code == 401
    a.post("/sign-in", data={"key": "wrong"})
    assert a.ask("conversations", "").status_code == 401
    a.post("/sign-in", data={"key": "amy-key"})
    view = a.talk("我的")
    elsewhere = page.visitor()
    elsewhere.post("/sign-in", data={"key": "amy-key"})
    assert elsewhere.call("open", view["id"]) == view and elsewhere.call("start")["signed_in"]
    b = page.visitor()
    b.post("/sign-in", data={"key": "bob-key"})
    assert "no such" in b.call("open", view["id"])
    a.post("/sign-out")
    assert a.ask("conversations", "").status_code == 401


def test_who_guesses_keys_has_to_wait(serve):
    """openchamber PR 269, litellm PR 36116."""
    page = serve(keys=keys())
    a = page.visitor()
    assert a.post("/sign-in", content=b"key=" + b"x" * 20_000).status_code == 413
    with ThreadPoolExecutor(10) as threads:
        for answer in threads.map(lambda n: a.post("/sign-in", data={"key": f"wrong {n}"}), range(10)):
            assert answer.headers["location"] == "/?wrong"
    answer = a.post("/sign-in", data={"key": "amy-key"})
    assert answer.status_code == 429 and 0 < int(answer.headers["retry-after"]) <= 60 and 'name="key"' in answer.text
    elsewhere = {"X-Forwarded-For": "192.0.2.1"}  # said by a proxy on this machine
    assert a.post("/sign-in", data={"key": "amy-key"}, headers=elsewhere).headers["location"] == "/"


def test_guesses_are_forgotten_after_a_minute():
    now = [0.0]
    guesses = Guesses(lambda: now[0])
    for second in range(10):
        now[0] = second
        assert guesses.wait("a") == 0
        guesses.wrong("a")
    assert guesses.wait("a") == 51 and guesses.wait("b") == 0
    now[0] = 60.5
    assert guesses.wait("a") == 0


def test_a_cookie_that_came_over_https_stays_there(page):
    assert "Secure" not in httpx.get(page.url).headers["set-cookie"]
    cookie = httpx.get(page.url, headers={"X-Forwarded-Proto": "https"}).headers["set-cookie"]
    assert "Secure" in cookie and "HttpOnly" in cookie


@pytest.fixture
def store(tmp_path):
    with contextlib.closing(Store(tmp_path / "sessions.sqlite3")) as made:
        yield made


def test_cookies_of_those_who_left_are_worth_nothing(store):
    signed = Users(SECRET, store, keys())
    visitor = signed.visitor(signed.sign("user:amy"))
    assert visitor and visitor.owner == "user:amy"
    assert signed.visitor(signed.sign("user:eve")) is None and signed.visitor(signed.sign("browser:x")) is None
    assert Users(SECRET, store).visitor(signed.sign("user:amy")) is None
    assert Users(b"t" * 32, store, keys()).visitor(signed.sign("user:amy")) is None


def test_a_session_ends_wherever_its_cookie_was_copied_and_others_go_on(serve):
    """What was copied before signing out was good for a year."""
    page = serve(keys=keys())
    a, elsewhere = page.visitor(), page.visitor()
    for visitor in (a, elsewhere):
        visitor.post("/sign-in", data={"key": "amy-key"})
    copied = [dict(a.cookies)]
    a.get("/")  # the page is loaded anew, with another cookie of the same session
    copied.append(dict(a.cookies))
    view = a.talk("我的")
    assert all(httpx.get(f"{page.url}/export/{view['id']}.md", cookies=each).status_code == 200 for each in copied)
    a.post("/sign-out")
    for each in copied:
        assert httpx.get(f"{page.url}/export/{view['id']}.md", cookies=each).status_code == 401
        assert 'name="key"' in httpx.get(page.url, cookies=each).text
    assert elsewhere.call("open", view["id"]) == view
    again = Users(SECRET, page.store, keys())  # the server is started anew
    assert again.visitor(next(iter(copied[0].values()))) is None
    assert again.visitor(next(iter(elsewhere.cookies.values()))) is not None
    assert a.post("/sign-out").status_code == 303  # once more, in another tab


def test_a_browser_from_before_there_were_sessions_keeps_its_conversations(page):
    users = page.site.users
    words = f"{b'browser:old'.hex()}.9999999999"
    old = httpx.Cookies({users.cookie: f"{words}.{users._seal(words)}"})
    renewed = httpx.get(page.url, cookies=old).cookies
    assert users.visitor(renewed[users.cookie]).owner == "browser:old"


def test_following_ends_with_the_session(serve):
    page = serve(lambda request, choice: [Say("字", wait=0.02) for _ in range(1000)], keys=keys())
    a = page.visitor()
    a.post("/sign-in", data={"key": "amy-key"})
    message = a.call("send", "", "", "写", {})["messages"][-1]["id"]
    told = a.events(message)
    assert next(told)["state"] == "answering"
    assert a.post("/sign-out").status_code == 303
    assert all(each["state"] == "answering" for each in told)  # to its end


def test_the_secret_stays_and_is_private(tmp_path):
    secret = secret_of(tmp_path / "data")
    assert len(secret) == 32 and secret_of(tmp_path / "data") == secret
    assert (tmp_path / "data" / "secret").stat().st_mode & 0o077 == 0
