"""Answers that are being written. They belong to a message in the server, and are saved there, whoever looks."""

import contextlib
import sqlite3
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from mengya.errors import UserError
from mengya.infer.backends import Backend, Deliver, Ticket
from mengya.infer.backends.listening import awaited
from mengya.infer.request import Conversation, Piece, Request, Sampling
from mengya.serve.web.store import Message, State, Store, in_words
from mengya.text.thoughts import Thoughts, split_thoughts

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Ask:
    messages: Sequence[Mapping[str, Any]]
    """For the model; none if the answer is known without it."""
    conclude: Callable[[str], tuple[str, Mapping[str, Any]]] | None = None
    """From what the model has said to the answer, and what to keep with it, such as its sources."""


Prepare = Callable[[Backend, Callable[[], bool]], Ask]
"""(a backend whose requests end with the answer, whether it is still wanted) -> what to ask. It may take long: it is
called in the thread of the answer. UserError if there is nothing to ask."""
_SAVE_EVERY = 2.0
"""Seconds between two savings of an answer that grows."""
_SETTLE = 2.0
"""Seconds that are waited for an answer which has ended to be saved."""
_OPEN, _OPEN_EACH = 64, 8
"""Answers that are written at a time, in all and for one owner."""


@dataclass
class Answer:
    """Read by whoever shows it, from any thread; written by its own thread alone, but for `stop`."""

    id: str
    owner: str
    conversation: str
    model: str
    text: str = ""
    thoughts: Thoughts = field(default_factory=Thoughts)
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    state: State = "answering"
    error: str | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)
    version: int = 0
    """Grows with every change."""
    pieces: "SimpleQueue[Piece]" = field(default_factory=SimpleQueue)
    """What the backend has delivered, and the thread of the answer has not seen yet."""
    tickets: list[Ticket] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def info(self) -> dict[str, Any]:
        return self.info_with(self.error)

    def info_with(self, error: str | None) -> dict[str, Any]:
        told = {"model": self.model, "tokens": self.tokens, "prompt_tokens": self.prompt_tokens}
        told |= {"seconds": round(self.seconds, 3)} | dict(self.kept)
        return told | ({"error": error} if error else {})


class Answers:
    def __init__(self, store: Store):
        self._store = store
        self._open: dict[str, Answer] = {}
        self._lock = threading.Lock()

    def begin(self, answer: Answer, backend: Backend, sampling: Sampling, prepare: Prepare) -> None:
        """Write it in the background; its message is in the store. UserError if too many are being written."""
        with self._lock:
            own = sum(other.owner == answer.owner for other in self._open.values())
            if own >= _OPEN_EACH or len(self._open) >= _OPEN:
                raise UserError("too many answers are being written; stop one, or wait for it")
            self._open[answer.id] = answer
        threading.Thread(
            target=self._run, args=(answer, backend, sampling, prepare), name=f"answer {answer.id}", daemon=True
        ).start()

    def get(self, owner: str, message: str) -> Answer | None:
        found = self._open.get(message)
        return found if found is not None and found.owner == owner else None

    def of(self, owner: str) -> set[str]:
        """The conversations of an owner in which something is being written."""
        return {a.conversation for a in list(self._open.values()) if a.owner == owner and a.state == "answering"}

    def stop(self, owner: str, message: str) -> None:
        """At once, whatever the model is doing; what there is of the answer is kept. Nothing if it has ended."""
        answer = self.get(owner, message)
        if answer is not None:
            self._end(answer, "stopped")

    def stop_conversation(self, owner: str, conversation: str) -> None:
        for answer in list(self._open.values()):
            if answer.owner == owner and answer.conversation == conversation:
                self._end(answer, "stopped")

    def settle(self, owner: str) -> None:
        """Wait until what has ended is in the store too, which a full disk may delay: then no longer than this."""
        for answer in list(self._open.values()):
            if answer.owner == owner and answer.state != "answering":
                answer.ended.wait(_SETTLE)

    def close(self) -> None:
        """Stop and save everything."""
        for answer in list(self._open.values()):
            self._end(answer, "stopped")
            answer.ended.wait(5)

    def _run(self, answer: Answer, backend: Backend, sampling: Sampling, prepare: Prepare) -> None:
        try:
            watched: Backend = _Watched(backend, answer)
            ask = prepare(watched, lambda: answer.state == "answering")
            if ask.messages and answer.state == "answering":
                self._write(answer, watched, Request(prompt=Conversation(ask.messages), sampling=sampling))
            if ask.conclude is not None and answer.state == "answering":
                text, kept = ask.conclude(answer.thoughts.answer)
                with self._lock:
                    _replace(answer, text, kept)
            self._end(answer, "done")
        except UserError as error:
            self._end(answer, "error", str(error))
        except Exception as error:  # a fault of ours ends this answer, and no other
            self._end(answer, "error", f"the answer failed ({type(error).__name__}); try again")
            raise
        finally:
            self._save_for_good(answer)
            self._open.pop(answer.id, None)
            answer.ended.set()

    def _write(self, answer: Answer, backend: Backend, request: Request) -> None:
        """Until the model has ended; UserError if it fails."""
        started = saved = time.monotonic()
        answer.prompt_tokens = backend.submit(request, answer.pieces.put).prompt_tokens
        while answer.state == "answering":
            piece = awaited(answer.pieces, backend)
            now = time.monotonic()
            with self._lock:
                if answer.state != "answering":
                    return
                _grow(answer, piece, now - started)
            if piece.finish == "error":
                raise UserError(piece.error or "the model failed")
            if piece.finish is not None:
                answer.thoughts.end()
                return
            if now - saved > _SAVE_EVERY:
                saved = now
                with contextlib.suppress(sqlite3.Error):  # it is tried again, at the latest at the end
                    self._save(answer)

    def _end(self, answer: Answer, state: State, error: str | None = None) -> None:
        with self._lock:
            if answer.state != "answering":
                return
            answer.thoughts.end()
            answer.state, answer.error = state, error
            answer.version += 1
        for ticket in answer.tickets:
            ticket.cancel()
        answer.pieces.put(Piece(0, "", finish="cancelled"))  # its thread goes on, even if the engine has died
        if state == "stopped":  # at once: the thread may wait for a server that has not begun to answer
            with contextlib.suppress(sqlite3.Error):
                self._save(answer)

    def _save(self, answer: Answer) -> None:
        self._store.save(answer.owner, answer.id, answer.text, answer.state, answer.info)

    def _save_for_good(self, answer: Answer) -> None:
        """Nothing is lost because the disk is full for a while: it is shown meanwhile, with what is wrong."""
        error = answer.error
        for seconds in (0.1, 1.0, *[5.0] * 60):
            try:
                self._store.save(answer.owner, answer.id, answer.text, answer.state, answer.info_with(error))
                return
            except sqlite3.Error as fault:
                answer.error = f"this answer is not saved yet: {in_words(fault)}"
                answer.version += 1
                time.sleep(seconds)


class _Watched:
    """A backend whose requests are cancelled when an answer ends."""

    def __init__(self, backend: Backend, answer: Answer):
        self._backend, self._answer = backend, answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def submit(self, request: Request, deliver: Deliver) -> Ticket:
        ticket = self._backend.submit(request, deliver)
        self._answer.tickets.append(ticket)
        if self._answer.state != "answering":  # it was stopped meanwhile
            ticket.cancel()
        return ticket


def _replace(answer: Answer, text: str, kept: Mapping[str, Any]) -> None:
    """The answer alone; what was thought stays."""
    thought = answer.thoughts.thought
    answer.text = f"<think>{thought}</think>\n\n{text}" if thought else text
    answer.thoughts.answer, answer.kept = text, kept
    answer.version += 1


def _grow(answer: Answer, piece: Piece, seconds: float) -> None:
    answer.text += piece.text
    answer.thoughts.take(piece.text)
    answer.tokens += len(piece.tokens)
    if piece.usage is not None:
        answer.tokens = piece.usage.completion_tokens or answer.tokens
        answer.prompt_tokens = piece.usage.prompt_tokens or answer.prompt_tokens
    answer.seconds = seconds
    answer.version += 1


def turns(branch: Sequence[Message], write: Callable[[Message], Any] = lambda message: message.text or "…") -> Messages:
    """What was said, as a model is told: without thoughts, and without questions that got no answer. `write`: what of a
    question is told."""
    told: Messages = []
    for message in branch:
        if message.role == "user":
            if told and told[-1]["role"] == "user":
                told.pop()
            told.append({"role": "user", "content": write(message)})
        elif told and (said := split_thoughts(message.text)[1]):
            told.append({"role": "assistant", "content": said})
    return told


def preamble(system: str) -> Messages:
    """The system prompt as a message; nothing if it is empty."""
    return [{"role": "system", "content": system}] if system.strip() else []


def fitted(backend: Backend, system: str, messages: Messages, longest: int) -> Messages:
    """With the system prompt, and without the oldest turns that leave no room for an answer of `longest` tokens, or a
    quarter of the context. UserError if the question alone leaves none."""
    before = preamble(system)
    if not backend.context:  # not known: the server refuses what is too long
        return [*before, *messages]
    room = backend.context - min(longest, max(1, backend.context // 4))

    def used(dropped: int) -> int:
        return len(backend.encode(Conversation([*before, *messages[2 * dropped :]])))

    if used(0) <= room:
        return [*before, *messages]
    choices = range((len(messages) + 1) // 2)  # counting takes time: not once for each turn of a long conversation
    dropped = bisect_left(choices, True, lo=1, key=lambda dropped: used(dropped) <= room)
    if dropped == len(choices):
        raise UserError(
            f"the message takes {used(choices[-1])} tokens, but this model has room for {room} (its context has "
            f"{backend.context}); shorten it"
        )
    return [*before, *messages[2 * dropped :]]
