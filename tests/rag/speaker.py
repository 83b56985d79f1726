"""A backend that says what a test wants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mengya.errors import UserError
from mengya.infer.backends import Deliver
from mengya.infer.request import Conversation, LogProb, Piece, Prompt, Request, TooLong


@dataclass
class Speaker:
    """Every character is a token. `say` gets the text of the last message; an exception is a failure of the model.
    `likes`: how much it likes each character that follows a prompt (a log-probability); it tells of token ids."""

    say: Callable[[str], str]
    context: int = 0
    likes: Callable[[str], float] | None = None
    asked: list[Sequence[Any]] = field(default_factory=list)
    name: str = "speaker"
    about: str = ""

    def encode(self, prompt: Prompt) -> list[int]:
        assert isinstance(prompt, Conversation | str)
        text = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt.messages)
        return list(map(ord, text))

    def submit(self, request: Request, deliver: Deliver) -> "Speaker":
        if request.prompt_logprobs:
            return self._tell(request.prompt, deliver)
        assert isinstance(request.prompt, Conversation)
        if self.context and (tokens := len(self.encode(request.prompt))) >= self.context:
            raise TooLong("too long", tokens, self.context)
        self.asked.append(request.prompt.messages)
        try:
            text = self.say(request.prompt.messages[-1]["content"])
        except ValueError as error:
            deliver(Piece(0, "", finish="error", error=str(error)))
            return self
        for character in text:
            deliver(Piece(0, character, (0,)))
        deliver(Piece(0, "", finish="stop"))
        return self

    def _tell(self, ids: Any, deliver: Deliver) -> "Speaker":
        if self.likes is None:
            raise UserError("no log-probabilities here")
        scores = tuple(LogProb(token, chr(token).encode(), self.likes(chr(token))) for token in ids)
        deliver(Piece(0, "", finish="length", prompt_logprobs=scores))
        return self

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass
