"""A backend that says what a test wants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mengya.infer.backends import Deliver
from mengya.infer.request import Conversation, Piece, Prompt, Request, TooLong


@dataclass
class Speaker:
    """Every character is a token. `say` gets the text of the last message; an exception is a failure of the model."""

    say: Callable[[str], str]
    context: int = 0
    asked: list[Sequence[Any]] = field(default_factory=list)
    name: str = "speaker"
    about: str = ""

    def count(self, prompt: Prompt) -> int:
        assert isinstance(prompt, Conversation)
        return sum(len(message["content"]) for message in prompt.messages)

    def submit(self, request: Request, deliver: Deliver) -> "Speaker":
        assert isinstance(request.prompt, Conversation)
        if self.context and self.count(request.prompt) >= self.context:
            raise TooLong("too long", self.count(request.prompt), self.context)
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

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass
