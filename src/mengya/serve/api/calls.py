"""Calls of tools in what a model writes, found while it writes.

Three forms are known: `<tool_call>{…}</tool_call>` (ours, Qwen's, Hermes'), `[TOOL_CALLS]` and a list, or a name and
its arguments (Mistral's), and one JSON object that is the whole answer (Llama's). What looks like a call and is none is
text.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from mengya.serve.api.messages import as_arguments
from mengya.text.json_text import DECODER, parse_json

_BEGIN, _END, _LIST = "<tool_call>", "</tool_call>", "[TOOL_CALLS]"
_PYTHON = "<|python_tag|>"
_BARE = re.compile(r'\s*\{\s*"(?:name|type|function)"\s*:')
_BARE_LENGTH = 40
"""Characters after which a bare object would have said that it is a call."""


class Called(NamedTuple):
    name: str
    arguments: str
    """JSON of an object."""


class CallFinder:
    """Takes the text of one answer piece by piece; gives text and calls. Joined, the texts are the answer without its
    calls and the white space beside them."""

    def __init__(self, names: set[str], whole: bool = False, most: int | None = None):
        """`names`: of the tools; `whole`: the answer is one bare call; `most`: calls that are let through, after which
        nothing is."""
        self._names, self._most = names, most
        self._held = ""
        self._state: Literal["begin", "text", "call", "list", "whole"] = "whole" if whole else "begin"
        self._behind_call = False
        self.count = 0
        """Calls so far."""

    def feed(self, text: str) -> list[str | Called]:
        self._held += text
        return self._let_through(self._advance(final=False))

    def end(self) -> list[str | Called]:
        """What is left when the answer has ended."""
        return self._let_through(self._advance(final=True))

    def _let_through(self, found: Iterator[str | Called]) -> list[str | Called]:
        out: list[str | Called] = []
        for item in found:
            if self._most is not None and self.count >= self._most:
                continue
            self.count += isinstance(item, Called)
            if item:
                out.append(item)
        return out

    def _advance(self, final: bool) -> Iterator[str | Called]:
        while True:
            if self._state == "begin" and not self._begin(final):
                return
            if self._state in ("list", "whole"):
                if final:
                    yield from self._at_the_end()
                return
            if self._state == "text":
                yield from self._text(final)
                if self._state == "text":
                    return
            elif self._state == "call":
                before = len(self._held)
                yield from self._call(final)
                if len(self._held) == before:
                    return

    def _begin(self, final: bool) -> bool:
        """Whether it is known what an answer begins with: an object that may be a call, or something else."""
        text = self._held.lstrip()
        if not text and not final:
            return False
        bare = text.removeprefix(_PYTHON)
        if bare.startswith("{") and not final and not _BARE.match(bare) and len(bare) < _BARE_LENGTH:
            return False
        if _PYTHON.startswith(text) and not final:
            return False
        self._state = "whole" if _BARE.match(bare) else "text"
        return True

    def _text(self, final: bool) -> Iterator[str]:
        """What stands before the next mark; as much as cannot belong to one, if there is none."""
        if self._behind_call:
            self._held = self._held.lstrip()
            self._behind_call = not self._held
        marks = [(at, mark) for mark in (_BEGIN, _LIST) if (at := self._held.find(mark)) >= 0]
        if marks:
            at, mark = min(marks)
            yield self._held[:at].rstrip()
            self._held = self._held[at + len(mark) :]
            self._state = "call" if mark == _BEGIN else "list"
            return
        if final:
            yield self._held.rstrip() if self.count else self._held
            self._held = ""
            return
        keep = max(
            (n for mark in (_BEGIN, _LIST) for n in range(len(mark)) if self._held.endswith(mark[:n])), default=0
        )
        out = self._held[: len(self._held) - keep].rstrip()
        self._held = self._held[len(out) :]
        yield out

    def _call(self, final: bool) -> Iterator[str | Called]:
        """A call up to its end mark, or to the end of the answer: some models leave the mark out."""
        at = self._held.find(_END)
        while at >= 0:
            calls = self._calls(self._held[:at])
            if calls or not _in_string(self._held[:at]):
                break
            at = self._held.find(_END, at + 1)  # that one was a part of an argument
        if at < 0 and not final:
            return
        written, after = (self._held, "") if at < 0 else (self._held[:at], self._held[at + len(_END) :])
        calls = self._calls(written)
        self._held, self._state, self._behind_call = after, "text", bool(calls)
        yield from calls
        if not calls:
            yield _BEGIN + written + (_END if at >= 0 else "")

    def _at_the_end(self) -> Iterator[str | Called]:
        """Of a list, or an answer that is one call."""
        listed, written = self._state == "list", self._held
        calls = self._calls(written.strip().removeprefix(_PYTHON), listed)
        if self._state == "whole" and not {call.name for call in calls} <= self._names:
            calls = []
        self._held = ""
        yield from calls
        if not calls:
            yield _LIST + written if listed else written

    def _calls(self, written: str, listed: bool = False) -> list[Called]:
        """None of them if it is not JSON of calls."""
        if listed and (named := re.match(r"\s*([\w.-]+)\s*(?:\[ARGS\])?\s*(?=\{)", written)):
            written = f'{{"name": {json.dumps(named[1])}, "arguments": {written[named.end() :]}}}'
        try:
            value = parse_json(written)
        except ValueError:
            return []
        calls = [_called(item) for item in (value if isinstance(value, list) else [value])]
        return [call for call in calls if call] if all(calls) else []


def _called(value: Any) -> Called | None:
    if not isinstance(value, dict):
        return None
    value = value["function"] if isinstance(value.get("function"), dict) else value
    name = value.get("name")
    given = value.get("arguments", value.get("parameters", {}))
    if isinstance(given, str):  # JSON as a text, as it is on the wire
        try:
            given = parse_json(given) if given.strip() else {}
        except ValueError:
            return None
    if not isinstance(name, str) or not name or not isinstance(given or {}, dict):
        return None
    return Called(name, as_arguments(given or {}))


def _in_string(text: str) -> bool:
    """Whether JSON breaks off inside a string."""
    try:
        DECODER.raw_decode(text.lstrip())
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    return False
