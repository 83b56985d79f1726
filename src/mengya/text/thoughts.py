"""What a model writes between <think> and </think>, apart from its answer, while the text is still arriving.

Some templates open the thought themselves, so that only its end is written; the first end counts. In code, and
anywhere but at the beginning, the words are text like others.
"""

import re

_OPEN, _CLOSE = "<think>", "</think>"
_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)


class Thoughts:
    """Takes a text in pieces. `thought` and `answer` are what is known of them; at each moment only the beginning of a
    tag is held back, which `end` gives to where it belongs."""

    def __init__(self) -> None:
        self.thought = ""
        self.answer = ""
        self.closed = True
        """Whether no thought is open."""
        self._state = "begin"
        self._held = ""

    def take(self, piece: str) -> None:
        self._held += piece
        while self._step():
            pass

    def end(self) -> None:
        """Nothing more comes."""
        if self._state == "thought":
            self.thought += self._held
        else:
            self.answer += self._held
        self._held = ""

    def _step(self) -> bool:
        """Whether the state has changed, and there may be more to do with what is held."""
        if self._state == "begin":
            words = self._held.lstrip()
            if words.startswith(_OPEN):
                self._held, self._state, self.closed = words[len(_OPEN) :], "thought", False
                return True
            if _OPEN.startswith(words):
                return False
            self._state = "open"
            return True
        if self._state == "thought":
            return self._until_close()
        if self._state == "open":
            return self._lone_close()
        self.answer += self._held
        self._held = ""
        return False

    def _until_close(self) -> bool:
        thought, close, rest = self._held.partition(_CLOSE)
        if not close:
            keep = _tag_prefix(self._held)
            self.thought += self._held[: len(self._held) - keep]
            self._held = self._held[len(self._held) - keep :]
            return False
        self.thought += thought
        self._state, self.closed, self._held = "answer", True, rest
        return True

    def _lone_close(self) -> bool:
        """An end without a beginning: all before it was a thought."""
        before, close, rest = self._held.partition(_CLOSE)
        if close:
            if _in_code(self.answer + before):
                self.answer += before + close
                self._held = rest
            else:
                self.thought, self.answer = self.answer + before, ""
                self._state, self._held = "answer", rest
            return True
        keep = _tag_prefix(self._held)
        self.answer += self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return False


def split_thoughts(text: str) -> tuple[str, str]:
    """(what was thought, the answer), both without space around them."""
    thoughts = Thoughts()
    thoughts.take(text)
    thoughts.end()
    return thoughts.thought.strip(), thoughts.answer.strip()


def _tag_prefix(text: str) -> int:
    """Characters at the end of `text` that may begin the closing tag."""
    return next((n for n in range(min(len(_CLOSE) - 1, len(text)), 0, -1) if text.endswith(_CLOSE[:n])), 0)


def _in_code(text: str) -> bool:
    """Whether the end of a Markdown text is in a code block or a code span."""
    return len(_FENCE.findall(text)) % 2 == 1 or text.rpartition("\n")[2].count("`") % 2 == 1
