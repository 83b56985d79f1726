"""Frames leave at once; who leaves stops the work; who does not read is left; a server that stops lets answers end."""

import itertools
import json
import socket
import threading
import time

import pytest

from .scripted import USER, Say, Scripted, frames, soon

SLOW = [Say("春", wait=0.3), Say("天", wait=0.3), Say("来", wait=0.3)]
ENDLESS = [Say("春", wait=0.02)] * 10_000


def read_until(connection, mark):
    got = b""
    while mark not in got:
        part = connection.recv(65536)
        assert part, got
        got += part
    return got


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_headers_and_frames_leave_at_once(serving, path, encoding):
    live = serving(lambda request, choice: SLOW)
    connection = live.open()
    body = json.dumps({"messages": USER, "prompt": "a", "stream": True}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAccept-Encoding: {encoding}\r\n"
    begun = time.monotonic()
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    headers = read_until(connection, b"\r\n\r\n").lower()
    read_until(connection, b"\n\n") if b"\n\n" not in headers else None
    assert "春".encode() not in headers
    assert b"cache-control: no-cache" in headers and b"x-accel-buffering: no" in headers
    assert b"content-encoding" not in headers and b"text/event-stream" in headers
    times = []
    for character in "春天来":
        read_until(connection, character.encode())
        times.append(time.monotonic() - begun)
    assert all(later - earlier > 0.1 for earlier, later in itertools.pairwise(times)), times
    connection.close()


def test_a_silent_stream_says_that_it_lives(serving):
    live = serving(lambda request, choice: [Say("春", wait=0.5)], limits={"ping_seconds": 0.1})
    answer = live.chat(stream=True).text
    assert answer.count("\n\n: ") >= 3 and list(frames(answer))[-1] == "[DONE]"
    assert live.post("/ai/llm/generation_stream", {"message": "a"}).text == '{"text":["春"]}\0'


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/ai/llm/generation"])
def test_who_leaves_stops_the_work(serving, path, stream, n):
    live = serving(Scripted(lambda request, choice: ENDLESS, slots=1), limits={"open_answers": 3})
    connection = live.send({"messages": USER, "prompt": "a", "message": "a", "n": n, "stream": stream}, path)
    soon(lambda: live.backend.running == 1)
    if stream:
        read_until(connection, "春".encode())
    connection.close()
    soon(lambda: live.backend.cancels == 1 and live.backend.running == 0 and live.backend.free_blocks == 64, 1)
    live.backend.answer = lambda request, choice: ["好"]
    assert live.complete(n=3).status_code == 200


def test_who_leaves_while_waiting_is_forgotten(serving):
    live = serving(Scripted(lambda request, choice: ENDLESS if request.sampling.seed else ["好"], slots=1))
    first = live.send({"messages": USER, "seed": 1, "stream": True})
    soon(lambda: live.backend.running == 1)
    for stream in (True, False):
        second = live.send({"messages": USER, "stream": stream})
        soon(lambda: live.backend.waiting == 1)
        second.close()
        soon(lambda: live.backend.waiting == 0)
    first.close()
    begun = time.monotonic()
    assert live.chat().status_code == 200 and time.monotonic() - begun < 1


def test_who_leaves_while_the_request_is_prepared(serving):
    """A template or a grammar may take its time in a thread; what it has made by then is cancelled."""
    go = threading.Event()
    live = serving(Scripted(lambda request, choice: ENDLESS), limits={"open_answers": 1})
    live.backend.refuse = lambda request: go.wait(5)
    connection = live.send({"messages": USER})
    time.sleep(0.1)
    connection.close()
    time.sleep(0.1)
    go.set()
    soon(lambda: live.backend.running == 0 and live.backend.free_blocks == 64)
    live.backend.answer = lambda request, choice: ["好"]
    soon(lambda: live.chat().status_code == 200)


def test_fifty_that_leave_cost_nothing(serving):
    live = serving(Scripted(lambda request, choice: ENDLESS, slots=4), limits={"open_answers": 60})
    for number in range(50):
        connection = live.send({"messages": USER, "stream": number % 2 == 0, "n": 1 + number % 3 % 2})
        if number % 5 == 0:
            read_until(connection, b"200" if number % 2 == 0 else b"") if number % 2 == 0 else None
        connection.close()
    live.backend.answer = lambda request, choice: ["好"]
    soon(lambda: live.complete(prompt=["a"] * 60).status_code == 200, 10)  # all 60 are free, once the last has left
    soon(lambda: live.backend.running == live.backend.waiting == 0 and live.backend.free_blocks == 64, 10)


def test_who_does_not_read_is_left(serving):
    live = serving(lambda request, choice: ["长" * 50_000] * 2000, limits={"write_seconds": 0.3})
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", live.port))
    body = json.dumps({"messages": USER, "stream": True, "max_tokens": 2000}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    soon(
        lambda: (
            not live.server.server_state.connections and not live.server.server_state.tasks and live.backend.requests
        )
    )
    assert live.chat(max_tokens=1).status_code == 200
    connection.close()


def test_a_server_that_stops_lets_answers_end(serving):
    live = serving(lambda request, choice: SLOW)
    connection = live.send({"messages": USER, "stream": True})
    plain = live.send({"messages": USER})
    read_until(connection, "春".encode())
    live.server.should_exit = True
    assert b"[DONE]" in read_until(connection, b"[DONE]")
    assert b'"content":"\xe6\x98\xa5\xe5\xa4\xa9\xe6\x9d\xa5"' in plain.makefile("rb").read()
    live.thread.join(5)
    assert not live.thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        live.open()


def test_a_server_that_stops_does_not_wait_for_ever(serving):
    live = serving(lambda request, choice: ENDLESS, limits={"drain_seconds": 1})
    connection = live.send({"messages": USER, "stream": True})
    read_until(connection, "春".encode())
    live.server.should_exit = True
    live.thread.join(5)
    assert not live.thread.is_alive()
    assert live.backend.cancels == 1
    connection.close()


def test_requests_one_after_another_on_one_connection(plain):
    body = json.dumps({"messages": USER}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with plain.open() as connection:
        connection.sendall(request * 3)
        got = b""
        while got.count(b"HTTP/1.1 200") < 3 or not got.endswith(b"}}}"):
            got += connection.recv(65536)
