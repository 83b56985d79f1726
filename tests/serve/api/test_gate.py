"""Keys, rates, hosts, sizes, times, origins; and what is written down."""

import hashlib
import json
import time

import pytest

from mengya.errors import UserError
from mengya.serve.api.keys import Keys

from .scripted import USER, Say, error_of, soon

KEY = "sk-春天"
CHAT = "/v1/chat/completions"


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


def bearer(key):
    return {"Authorization": f"Bearer {key}".encode()}


def test_only_who_has_a_key_may_ask(serving):
    live = serving(keys=Keys({digest(KEY): "li", digest("other"): "wang"}))
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        assert live.http.get(path).status_code == 401
    wrong = [{}, bearer("sk"), bearer(digest(KEY)), {"Authorization": b"Bearer"}, {"Authorization": KEY.encode()}]
    wrong += [{"Authorization": b"Basic " + KEY.encode()}, {"Authorization": b"\xff\xfe"}]
    for headers in wrong:
        answer = live.post(CHAT, {"messages": USER}, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        error = error_of(answer)
        assert error["code"] == "invalid_api_key" and KEY not in error["message"]
    assert not live.backend.requests
    for key in (KEY, "other"):
        assert live.post(CHAT, {"messages": USER}, headers=bearer(key)).status_code == 200
        assert live.http.get("/v1/models", headers=bearer(key)).status_code == 200
    assert live.http.get("/health").status_code == 200


def test_a_key_has_its_own_rate(serving):
    now = [0.0]
    live = serving(keys=Keys({digest("a"): "a", digest("b"): "b"}, per_minute=2, clock=lambda: now[0]))

    def ask(key):
        return live.post(CHAT, {"messages": USER}, headers=bearer(key))

    assert [ask("a").status_code for _ in range(2)] == [200, 200]
    answer = ask("a")
    assert answer.status_code == 429 and answer.headers["retry-after"] == "30"
    assert error_of(answer)["code"] == "rate_limit_exceeded"
    assert ask("b").status_code == 200
    assert live.http.get("/v1/models", headers=bearer("a")).status_code == 200
    now[0] = 31.0
    assert [ask("a").status_code for _ in range(2)] == [200, 429]


def test_a_file_of_hashes(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(f"# ours\n\n{digest('a').upper()}  li  # the first\n{digest('b')}\n")
    keys = Keys.read(path)
    assert (keys.name_of("Bearer a"), keys.name_of("bearer  b"), keys.name_of("Bearer c")) == ("li", "key 2", None)
    for text in ("sk-secret\n", f"{digest('a')[:-1]}\n", "", "# nothing\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="sha256sum") as caught:
            Keys.read(path)
        assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        Keys.read(tmp_path / "none.txt")


@pytest.mark.parametrize(("host", "status"), [
    ("localhost", 200), ("127.0.0.1:8000", 200), ("LOCALHOST:1", 200), ("[::1]:8000", 200),
    ("evil.example", 403), ("localhost.evil.example", 403), ("[", 403),
])  # fmt: skip
def test_hosts(serving, host, status):
    live = serving(hosts=["localhost", "127.0.0.1", "::1"])
    answer = live.post(CHAT, {"messages": USER}, headers={"Host": host})
    assert answer.status_code == status
    if status == 403:
        assert "--api-keys" in error_of(answer)["message"]


def test_a_body_that_is_too_large(serving):
    live = serving(limits={"body": 10_000})
    body = {"messages": [{"role": "user", "content": "长" * 4000}]}
    declared = live.post(CHAT, body)
    chunked = live.http.post(
        CHAT, content=iter([json.dumps(body).encode()]), headers={"Content-Type": "application/json"}
    )
    for answer in (declared, chunked):
        assert answer.status_code == 413 and "10000 bytes" in error_of(answer)["message"]
    assert live.chat().status_code == 200
    with live.open() as connection:  # who asks first is told before it sends
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head % CHAT.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_message_of_50_megabytes(serving):
    live = serving()
    answer = live.chat(messages=[{"role": "user", "content": "x" * 50_000_000}])
    assert answer.status_code == 413
    error_of(answer)
    assert live.chat().status_code == 200


@pytest.mark.parametrize("sent", [b'{"messages": [', b""])
def test_half_a_body_and_then_silence(serving, sent):
    live = serving(limits={"body_seconds": 0.2})
    with live.open() as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head.encode() + sent)
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408") and b'"code":"timeout"' in answer
    assert live.chat().status_code == 200


def test_a_head_that_never_ends(serving):
    live = serving(limits={"head_seconds": 0.3})
    for sent in (b"", b"POST / HT", b"POST / HTTP/1.1\r\nHost: x\r\nX: "):
        with live.open() as connection:
            connection.sendall(sent)
            begun = time.monotonic()
            try:
                answer = connection.makefile("rb").read()
            except ConnectionResetError:
                answer = b""
            assert time.monotonic() - begun < 2
            assert not answer


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_what_is_not_http(plain, sent):
    with plain.open() as connection:
        connection.sendall(sent)
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and b"application/json" in head
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_pages_of_other_sites_may_not_ask_unless_they_are_let(serving):
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    page, other = {"Origin": "https://page.example"}, {"Origin": "https://other.example"}
    closed = serving()
    assert closed.http.options(CHAT, headers=page | preflight).status_code == 405
    assert "access-control-allow-origin" not in closed.post(CHAT, {"messages": USER}, headers=page).headers
    live = serving(cors_origins=["https://page.example"], keys=Keys({digest("a"): "a"}))
    answer = live.http.options(CHAT, headers=page | preflight)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://page.example"
    answer = live.http.options(CHAT, headers=other | preflight)
    assert answer.status_code == 400
    error_of(answer)
    answer = live.post(CHAT, {"messages": USER}, headers=page)
    assert answer.status_code == 401 and answer.headers["access-control-allow-origin"] == "https://page.example"
    assert live.post(CHAT, {"messages": USER}, headers=page | bearer("a")).status_code == 200


def test_more_than_there_is_room_for_is_sent_away(serving):
    live = serving(lambda request, choice: [Say("春", wait=0.5)], limits={"open_answers": 2})
    waiting = [live.send({"messages": USER}) for _ in range(2)]
    soon(lambda: len(live.backend.requests) == 2)
    for answer in (
        live.chat(),
        live.chat(stream=True),
        live.complete(),
        live.post("/ai/llm/generation", {"message": "a"}),
    ):
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert error_of(answer)["code"] == "server_overloaded"
    for connection in waiting:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()
    assert live.chat().status_code == 200


def test_refused_requests_give_their_room_back(serving):
    live = serving(limits={"open_answers": 2})
    for _ in range(5):
        assert live.chat(messages=[{"role": "user", "content": "长" * 1001}]).status_code == 400
        assert live.complete(prompt=["a", "长" * 1001]).status_code == 400
    soon(lambda: live.complete(prompt=["a", "b"]).status_code == 200)


def test_neither_prompts_nor_keys_nor_paths_are_logged(serving, caplog, capfd):
    caplog.set_level("DEBUG")
    live = serving(keys=Keys({digest(KEY): "li"}))
    live.post(CHAT, {"messages": [{"role": "user", "content": "天机"}]}, headers=bearer(KEY))
    live.http.get("/v1/models/home/天机?key=天机", headers=bearer(KEY))
    live.http.post("/天机", headers=bearer("wrong-" + KEY))
    live.post(CHAT, {"messages": "天机"}, headers=bearer(KEY))
    soon(lambda: sum(record.name == "mengya.serve" for record in caplog.records) == 4)
    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    for secret in ("天机", KEY, "%E5", digest(KEY)):
        assert secret not in ours and secret not in "".join(capfd.readouterr())
    assert f"POST {CHAT} 200" in ours and "POST other 401" in ours and "GET /v1/models/{id} 404" in ours


def test_figures(serving):
    live = serving()
    live.chat(), live.chat(n=2), live.events(), live.chat(temperature=-1), live.http.get("/x")
    text = live.http.get("/metrics").text
    for line in (
        'mengya_requests_total{route="/v1/chat/completions",status="200"} 3.0',
        'mengya_requests_total{route="/v1/chat/completions",status="400"} 1.0',
        'mengya_requests_total{route="other",status="404"} 1.0',
        'mengya_tokens_total{kind="prompt",model="sprout"} 6.0',
        'mengya_tokens_total{kind="completion",model="sprout"} 20.0',
        'mengya_first_token_seconds_count{model="sprout"} 3.0',
        'mengya_running{model="sprout"} 0.0',
        'mengya_waiting{model="sprout"} 0.0',
        'mengya_blocks{model="sprout"} 64.0',
        'mengya_blocks_free{model="sprout"} 64.0',
    ):
        assert line in text.splitlines(), line
