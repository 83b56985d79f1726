"""A stand-in for a server that speaks OpenAI's protocol: each test says what it answers."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[["Handler", dict], None]


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, {name.title(): value for name, value in self.headers.items()}, {}))
        if self.server.models is None:
            self.fail(404, {"error": {"message": "no such path"}})
        else:
            self.reply({"object": "list", "data": [{"id": each, "object": "model"} for each in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, {name.title(): value for name, value in self.headers.items()}, body))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.server.script(self, body)

    def reply(self, content: Any, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if data[:1] in b"{[" else "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("x-should-retry", "false")  # the client would wait and try again
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status: int, content: Any) -> None:
        self.reply(content, status)

    def begin(self) -> None:
        """A stream, which ends when the connection does."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def send(self, data: Any) -> None:
        self.wfile.write(b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n")
        self.wfile.flush()

    def log_message(self, *arguments: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: list[str] | None = ["sprout"]
        self.asked: list[tuple[str, dict, dict]] = []
        self.script: Script = says("好")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def body(self) -> dict:
        """Of the last request."""
        return self.asked[-1][2]


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def delta(index: int = 0, finish: str | None = None, **said: Any) -> dict:
    return {"choices": [{"index": index, "delta": said, "finish_reason": finish}]}


def call(**part: Any) -> dict:
    """A part of a call; `name` and `arguments` belong to its function."""
    function = {name: part.pop(name) for name in ("name", "arguments") if name in part}
    return part | {"function": function}


def used(prompt: int = 7, completion: int = 3, cached: int = 2) -> dict:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"choices": [], "usage": usage | {"prompt_tokens_details": {"cached_tokens": cached}}}


def streams(*chunks: Any) -> Script:
    def script(handler: Handler, body: dict) -> None:
        handler.begin()
        for chunk in (*chunks, b"[DONE]"):
            handler.send(chunk)

    return script


def says(*texts: str, finish: str = "stop") -> Script:
    return streams(*(delta(content=text) for text in texts), delta(finish=finish), used())


def fails(status: int, content: Any) -> Script:
    return lambda handler, body: handler.fail(status, content)


def one_of(*scripts: Script) -> Script:
    """The next one for each request."""
    waiting = list(scripts)
    return lambda handler, body: waiting.pop(0)(handler, body)
