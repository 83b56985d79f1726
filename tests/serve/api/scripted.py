"""A backend that says what a test wants, and the real application in front of it, on a real port."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import torch

from mengya.errors import UserError
from mengya.infer.request import Conversation, LogProb, Piece, Prompt, Request, TooLong, Usage
from mengya.serve.api.server import listen, make_server
from mengya.serve.api.settings import Settings


@dataclass(frozen=True)
class Say:
    """A piece of an answer."""

    text: str = ""
    wait: float = 0.0
    """Seconds before it."""
    logprobs: tuple[LogProb, ...] = ()
    error: str | None = None
    finish: Any = None
    """Of the last piece; else "stop", or "length" where max_new_tokens cuts."""


Answer = Callable[[Request, int], Sequence[str | Say]]


def hello(request: Request, choice: int) -> list[str]:
    return ["你", "好", "，", f"{choice}", "！"]


@dataclass
class Scripted:
    """Every character of a prompt is a token; every piece of an answer, too. `slots` requests run at once, and each
    answer holds a block of 64."""

    answer: Answer = hello
    name: str = "sprout"
    context: int = 1000
    about: str = "scripted"
    slots: int = 8
    refuse: Callable[[Request], None] = lambda request: None
    requests: list[Request] = field(default_factory=list)
    cancels: int = 0
    free_blocks: int = 64
    running: int = 0
    waiting: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Condition()

    def text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        if isinstance(prompt, Conversation):
            told = [json.dumps(tool, ensure_ascii=False) for tool in prompt.tools or ()]
            return "".join([*told, *(_words(message["content"]) for message in prompt.messages)])
        return "".join(map(chr, prompt))

    def encode(self, prompt: Prompt) -> list[int]:
        return list(map(ord, self.text(prompt)))

    def embed(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.stack([torch.tensor([float(sum(ids)), float(len(ids)), 1.0]) for ids in prompts])

    def load(self) -> Any:
        return SimpleNamespace(running=self.running, waiting=self.waiting, blocks=64, free_blocks=self.free_blocks)

    def close(self) -> None:
        self.closed = True

    def submit(self, request: Request, deliver: Callable[[Piece], None]) -> Any:
        self.refuse(request)
        if not isinstance(request.prompt, str | Conversation) and max(request.prompt) > 0xFFFF:
            raise UserError(f"prompt={max(request.prompt)} is not a token of this model; there are {0xFFFF}")
        tokens = len(self.encode(request.prompt))
        if tokens >= self.context:
            raise TooLong(f"the prompt has {tokens} tokens", tokens, self.context)
        if request.grammar is not None:
            request.grammar()
        self.requests.append(request)
        ticket = Ticket(self, tokens)
        threading.Thread(target=self._run, args=(request, deliver, ticket), daemon=True).start()
        return ticket

    def _run(self, request: Request, deliver: Callable[[Piece], None], ticket: "Ticket") -> None:
        with self._lock:
            self.waiting += 1
            self._lock.wait_for(lambda: ticket.cancelled.is_set() or self.running < self.slots)
            self.waiting -= 1
            started = not ticket.cancelled.is_set()
            if started:
                self.running += 1
                self.free_blocks -= request.n
        try:
            self._say(request, deliver, ticket)
        finally:
            with self._lock:
                if started:
                    self.running -= 1
                    self.free_blocks += request.n
                self._lock.notify_all()

    def _say(self, request: Request, deliver: Callable[[Piece], None], ticket: "Ticket") -> None:
        plans = [
            [said if isinstance(said, Say) else Say(said) for said in self.answer(request, choice)]
            for choice in range(request.n)
        ]
        most = request.sampling.max_new_tokens
        said = [0] * request.n
        open_choices = set(range(request.n))
        while open_choices:
            for choice in sorted(open_choices):
                step, plan = said[choice], plans[choice]
                if step < len(plan) and plan[step].wait:
                    ticket.cancelled.wait(plan[step].wait)
                usage = Usage(ticket.prompt_tokens, step)
                if ticket.cancelled.is_set():
                    deliver(Piece(choice, "", finish="cancelled", usage=usage))
                    open_choices.discard(choice)
                elif step < len(plan) and plan[step].error:
                    deliver(Piece(choice, "", finish="error", error=plan[step].error, usage=usage))
                    open_choices.discard(choice)
                elif step == len(plan) or step == most:
                    given = plan[-1].finish if step == len(plan) and plan else None
                    finish = given or ("stop" if step == len(plan) else "length")
                    deliver(self._piece(request, choice, Say(), step, finish, usage))
                    open_choices.discard(choice)
                else:
                    deliver(self._piece(request, choice, plan[step], step))
                    said[choice] += 1

    def _piece(
        self, request: Request, choice: int, say: Say, step: int, finish: Any = None, usage: Any = None
    ) -> Piece:
        about = ()
        if request.prompt_logprobs and choice == 0 and step == 0:
            about = tuple(
                LogProb(ord(c), c.encode(), None if not i else -0.5, () if not i else (LogProb(1, b"x", -0.25),))
                for i, c in enumerate(self.text(request.prompt))
            )
        shown = ()
        if request.logprobs is not None and say.text:
            top = tuple(LogProb(n, f"t{n}".encode(), -float(n)) for n in range(request.logprobs))
            shown = say.logprobs or (LogProb(step, say.text.encode(), -0.125 * (step + 1), top),)
        return Piece(choice, say.text, (step,) if say.text else (), shown, finish, usage, about)


def _words(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@dataclass
class Ticket:
    backend: Scripted
    prompt_tokens: int
    cancelled: threading.Event = field(default_factory=threading.Event)
    begun: Any = None

    def cancel(self) -> None:
        if not self.cancelled.is_set():
            self.backend.cancels += 1
            self.cancelled.set()
            with self.backend._lock:
                self.backend._lock.notify_all()


class Live:
    """The application on a port of its own."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.backend: Any = next(iter(settings.models.values()))
        self._bound = listen("127.0.0.1", 0)
        self.port = self._bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = make_server(settings)
        self.thread = threading.Thread(target=self.server.run, args=([self._bound],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        self.http = httpx.Client(base_url=self.url, timeout=20)

    def stop(self) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return self.http.post(path, json=body, **more)

    def chat(self, **body: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", {"model": self.backend.name, "messages": USER} | body)

    def complete(self, **body: Any) -> httpx.Response:
        return self.post("/v1/completions", {"model": self.backend.name, "prompt": "春天"} | body)

    def events(self, path: str = "/v1/chat/completions", **body: Any) -> list[Any]:
        """The frames of a stream, the last of which is "[DONE]" or an error; comments left out."""
        first = {"messages": USER} if "chat" in path else {"prompt": "春天"}
        answer = self.post(path, {"model": self.backend.name, "stream": True} | first | body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(frames(answer.text))

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def send(self, body: Mapping[str, Any], path: str = "/v1/chat/completions") -> socket.socket:
        """A request by hand, whose connection the test may break."""
        data = json.dumps({"model": self.backend.name} | dict(body)).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        )
        connection = self.open()
        connection.sendall(head.encode() + b"\r\n\r\n" + data)
        return connection


USER = [{"role": "user", "content": "你好"}]


def frames(text: str) -> Iterator[Any]:
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            assert len(lines) == 1 and lines[0].startswith("data: "), block
            data = lines[0].removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data, parse_constant=forbidden)


def forbidden(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, whose shape is checked."""
    assert answer.status_code >= 400
    assert answer.headers["content-type"] == "application/json", answer.text
    body = answer.json()
    assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str) and body["error"]["message"]
    return body["error"]


def soon(check: Callable[[], bool], seconds: float = 3.0) -> None:
    """Waits until it is so."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "did not become true in time"
        time.sleep(0.01)


def refuse_with(message: str) -> Callable[[Request], None]:
    def refuse(request: Request) -> None:
        raise UserError(message)

    return refuse
