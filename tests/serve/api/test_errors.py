"""Whatever is not a success says so in OpenAI's shape; nothing that a client sends is a fault of the server."""

import json
import threading
import time

import httpx
import pytest

from mengya.infer.backends.openai import Remote
from mengya.serve.api.settings import Settings

from ...infer.backends.server import fails, says
from ...infer.backends.server import serving as elsewhere
from .scripted import USER, Live, Say, error_of, frames, refuse_with, soon

JSON = {"Content-Type": "application/json"}
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/", 404), ("GET", "/v1", 404), ("POST", "/v1/nothing", 404), ("GET", "/v1/models/x/", 404),
    ("GET", "/v1/models/other", 404), ("GET", CHAT, 405), ("DELETE", "/v1/models", 405), ("PUT", CHAT, 405),
    ("OPTIONS", CHAT, 405), ("GET", "/docs", 404), ("POST", "/health", 405), ("GET", "/v1/models/%ff%00", 404),
])  # fmt: skip
def test_routes_that_are_not_there(plain, method, path, status):
    answer = plain.http.request(method, path)
    assert answer.status_code == status
    error_of(answer)


@pytest.mark.parametrize(("content", "headers", "status"), [
    (b"", JSON, 400), (b"{", JSON, 400), (b"[]", JSON, 400), (b"7", JSON, 400), (b"null", JSON, 400),
    (b'"text"', JSON, 400), (b"\xff\xfe", JSON, 400), (b"{" * 10, JSON, 400), (b"[" * 200_000, JSON, 400),
    (b'{"messages":' * 50_000, JSON, 400), (b'{"x": ' + b"9" * 10_000 + b"}", JSON, 400),
    (b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}", JSON, 400), (b"\x00", JSON, 400), (b"{}", JSON, 400),
    (b"{}", {}, 415), (b"{}", {"Content-Type": "text/plain"}, 415),
    (b"a=b", {"Content-Type": "multipart/form-data"}, 415),
    (b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, 415), (b"{}", {"Content-Type": ";;"}, 415),
    (b"\x1f\x8b\x08\x00", JSON | {"Content-Encoding": "gzip"}, 415),
])  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings", "/ai/llm/generation"])
def test_bodies_that_are_none(plain, path, content, headers, status):
    answer = httpx.Client().build_request("POST", plain.url + path, content=content, headers=headers)
    answer = plain.http.send(answer)
    assert answer.status_code == status, answer.text
    assert error_of(answer)["type"] == "invalid_request_error"


def test_a_body_with_a_charset_is_json(plain):
    body = json.dumps({"messages": USER})
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON"):
        assert plain.http.post(CHAT, content=body, headers={"Content-Type": kind}).status_code == 200


def test_halves_of_characters_become_replacement_characters(serving):
    live = serving()
    body = r'{"model": "\ud800", "messages": [{"role": "user", "content": "a\ud83d\ude00\udc00b", "\udfff": 1}]}'
    answer = live.http.post(CHAT, content=body, headers=JSON)
    assert answer.status_code == 404 and "\ufffd" in error_of(answer)["message"]
    assert live.http.post(CHAT, content=body.replace(r"\ud800", "sprout"), headers=JSON).status_code == 200
    assert live.backend.requests[-1].prompt.messages[0]["content"] == "a😀\ufffdb"
    name = {"type": "function", "function": {"name": "x", "description": "\ud800"}}
    body = json.dumps({"messages": USER, "tools": [name], "tool_choice": "auto", "stop": "\udfff"})
    assert live.http.post(CHAT, content=body, headers=JSON).status_code == 200
    assert live.backend.requests[-1].stop == ["\ufffd"]


def test_a_validation_error_names_the_field_and_not_what_was_said(plain):
    error = error_of(plain.chat(messages=[{"role": "user", "content": {"secret": "天机"}}]))
    assert error["param"] == "messages[0].content" and "天机" not in error["message"]
    assert error["type"] == "invalid_request_error"
    error = error_of(plain.chat(temperature="天机"))
    assert error["param"] == "temperature" and "天机" not in error["message"]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/ai/llm/generation"])
def test_what_the_backend_refuses_is_a_bad_request_without_a_path(serving, path):
    live = serving(sources={"/home/li/models/sprout": "sprout"})
    live.backend.refuse = refuse_with("the chat template of /home/li/models/sprout raises: no")
    answer = live.post(path, {"messages": USER, "prompt": "a", "message": "a"})
    assert answer.status_code == 400
    assert error_of(answer)["message"] == "the chat template of sprout raises: no"


def test_a_fault_of_the_server_is_told_without_details(serving, caplog):
    caplog.set_level("INFO")

    def broken(request):
        raise KeyError("天机 /home/li/secret")

    live = serving()
    live.backend.refuse = broken
    for stream in (False, True):
        answer = live.chat(stream=stream)
        assert answer.status_code == 500 and "天机" not in answer.text
        assert error_of(answer)["type"] == "server_error"
    logged = "".join(record.getMessage() + str(record.exc_info or "") for record in caplog.records)
    assert "KeyError in broken" in logged
    assert "天机" not in logged and "secret" not in logged
    live.backend.refuse = lambda request: None
    assert live.chat().status_code == 200


@pytest.mark.parametrize(("say", "status", "code"), [
    (Say(error="NaN in /home/li/x"), 500, "model_error"),
    (Say(finish="cancelled"), 503, "cancelled"),
])  # fmt: skip
def test_an_answer_that_breaks_off(serving, say, status, code):
    """Plain: an error. As a stream: what there was, an error in the protocol's shape, and the end."""
    live = serving(lambda request, choice: ["春", "天", say], sources={"/home/li/x": "sprout"})
    for answer in (live.chat(), live.complete(), live.post("/ai/llm/generation", {"message": "a"})):
        assert answer.status_code == status
        assert error_of(answer)["code"] == code and "/home" not in answer.text
    for path in (CHAT, "/v1/completions"):
        *said, last = live.events(path)
        assert last["error"]["code"] == code
        assert "春天" in "".join(
            c.get("text", "") or c.get("delta", {}).get("content", "") for e in said for c in e["choices"]
        )
    parts = live.post("/ai/llm/generation_stream", {"message": "a"}).text.split("\0")
    assert json.loads(parts[1]) == {"text": ["春天"]} and json.loads(parts[2])["error"]["code"] == code


def test_an_answer_that_takes_too_long(serving):
    live = serving(lambda request, choice: ["春", Say("天", wait=9)], limits={"answer_seconds": 0.2})
    answer = live.chat()
    assert answer.status_code == 504 and error_of(answer)["code"] == "timeout"
    assert live.events()[-1]["error"]["code"] == "timeout"
    soon(lambda: live.backend.cancels == 2)


def test_a_request_whose_preparation_takes_too_long(serving):
    live = serving(limits={"answer_seconds": 0.2, "open_answers": 1})
    live.backend.refuse = lambda request: time.sleep(0.6)
    assert live.chat().status_code == 504
    live.backend.refuse = lambda request: None
    soon(lambda: live.chat().status_code == 200)
    assert live.backend.free_blocks == 64


def test_a_stream_ends_after_an_error_so_that_clients_do_too(serving):
    live = serving(lambda request, choice: [Say(error="no")])
    answer = live.chat(stream=True)
    assert "[DONE]" not in answer.text and "error" in list(frames(answer.text))[-1]


def test_what_a_server_elsewhere_refuses_is_refused_here():
    pytest.importorskip("openai")
    waiting, closed = threading.Event(), threading.Event()

    def silent(handler, body):
        waiting.set()
        if handler.connection.recv(1) == b"":  # until the client closes: not a byte is sent
            closed.set()

    with elsewhere() as server:
        remote = Remote(f"{server.address}#sprout")
        live = Live(Settings(models={"sprout": remote}))
        for stream in (False, True):
            server.script = fails(400, {"error": {"message": "too long"}})
            answer = live.chat(stream=stream)
            assert answer.status_code == 400 and "too long" in error_of(answer)["message"]
        server.script = silent
        clients = [live.send({"messages": USER}) for _ in range(6)]  # more than there are threads
        soon(lambda: len(server.asked) == 4 + 6, 20)
        assert live.http.get("/v1/models").status_code == 200
        for client in clients:
            client.close()
        assert closed.wait(20)
        soon(lambda: remote.load().running == 0, 20)
        server.script = says("好")
        assert live.chat().json()["choices"][0]["message"]["content"] == "好"
        live.stop()
        remote.close()
