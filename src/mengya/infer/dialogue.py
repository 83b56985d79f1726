"""A conversation with a model: what was said, and what still fits into the context."""

import time
from collections.abc import Generator
from queue import SimpleQueue

from mengya.errors import UserError
from mengya.infer.backends import Backend
from mengya.infer.backends.listening import awaited
from mengya.infer.request import Conversation, Piece, Request, Sampling
from mengya.text.chat import Message
from mengya.text.json_text import whole_characters


class Dialogue:
    """Each question is asked with all that was said before. Nothing of it is kept in the backend: that finds by itself
    what it has computed already. So interrupted turns, `clear` and dropped turns are not special cases."""

    def __init__(self, backend: Backend, sampling: Sampling, system: str | None = None):
        """UserError if the system prompt leaves no room for a question."""
        self._backend, self._sampling = backend, sampling
        self.context: int = backend.context
        """0: not known; then nothing is forgotten."""
        self.reserve: int = min(sampling.max_new_tokens, max(1, self.context // 4))
        """Tokens of the context that a question may not take, so that there is room for an answer."""
        self._preamble: list[Message] = [{"role": "system", "content": whole_characters(system)}] if system else []
        self.messages: list[Message] = list(self._preamble)
        """The conversation so far, as `Chat.encode` takes it."""
        self._streaming = False
        self.tokens_per_second = 0.0
        """Of the last turn: answer tokens by the time to compute them, the question's included."""
        if self._preamble:  # many templates take no system prompt without a question
            self._check_fits([*self._preamble, {"role": "user", "content": ""}], "the system prompt")

    def clear(self) -> None:
        """Forget the conversation, not the system prompt."""
        self.messages = list(self._preamble)

    def stream(self, user_text: str) -> Generator[str, None, None]:
        """The answer to `user_text` in pieces of text. UserError, and no change, if it is too long for the context.

        When the context is full, the oldest turns are forgotten. Closing the iterator (or KeyboardInterrupt) keeps
        the question with what was answered so far; if that is nothing, the question is forgotten too."""
        assert not self._streaming, "finish or close the previous answer first"
        question = {"role": "user", "content": whole_characters(user_text)}
        self._forget_for(question)
        said, finished = "", False
        self._streaming, self.tokens_per_second = True, 0.0
        try:
            for text in self._answer([*self.messages, question]):
                said += text
                yield text
            finished = True
        finally:
            self._streaming = False
            if said or finished:
                self.messages += [question, {"role": "assistant", "content": said}]

    def _forget_for(self, question: Message) -> None:
        """Drop the oldest turns until the question fits into the context with the others."""
        if not self.context:
            return
        self._check_fits([*self._preamble, question], "the message")
        while self._count([*self.messages, question]) + self.reserve > self.context:
            start = len(self._preamble)
            del self.messages[start : start + 2]  # a question and its answer

    def _check_fits(self, messages: list[Message], what: str) -> None:
        used, room = self._count(messages), self.context - self.reserve
        if self.context and used > room:
            raise UserError(
                f"{what} takes {used} tokens, but this model has room for {room} ({self.context} of context, "
                f"{self.reserve} of them for the answer); shorten it"
            )

    def _count(self, messages: list[Message]) -> int:
        return len(self._backend.encode(Conversation(messages))) if self.context else 0

    def _answer(self, messages: list[Message]) -> Generator[str, None, None]:
        pieces: SimpleQueue[tuple[float, Piece]] = SimpleQueue()
        request = Request(prompt=Conversation(messages), sampling=self._sampling)
        started, count, piece = time.perf_counter(), 0, None
        ticket = self._backend.submit(request, lambda piece: pieces.put((time.perf_counter(), piece)))
        try:
            while piece is None or piece.finish is None:
                now, piece = awaited(pieces, self._backend)
                told = piece.usage.completion_tokens if piece.usage else 0  # a server names no tokens
                count = max(count + len(piece.tokens), told)
                if count:
                    self.tokens_per_second = count / (now - started)
                if piece.text:
                    yield piece.text
        finally:
            ticket.cancel()
        if piece.finish == "error":
            raise UserError(piece.error or "the model failed")
