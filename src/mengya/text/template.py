"""Chat templates: Jinja from anybody, rendered in a sandbox, and the list of ours."""

import json
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, Any]
"""{"role": one of `ROLES`, "content": str or [{"type": "text", "text": str}, ...], perhaps "tool_calls", ...}"""

Span = tuple[int, int]
"""From the first character to the one after the last."""

ROLES = ("system", "user", "assistant", "tool")

# What `{% generation %}` puts before and after its body. No text can contain it: it is another one in each process.
_MARK = f"\ufdd0{secrets.token_hex(8)}\ufdd0"


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant says, as transformers and trl read it."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark = nodes.Output([nodes.TemplateData(_MARK)])
        return nodes.Scope([mark, *body, mark]).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Without Jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


@lru_cache
def _compiled(source: str) -> tuple[jinja2.Template, bool]:
    """With what transformers gives a template (utils/chat_template_utils.py); whether it marks what is generated."""
    extensions: list[Any] = [_Generation, "jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source), re.search(r"\{%[-+]?\s*generation\b", source) is not None


@dataclass(frozen=True)
class Template:
    """How a conversation is written: Jinja `source`, or `tool_use` where tools are offered and it is not None.

    `needs` are the control tokens that it writes and a tokenizer must have; known only of ours.
    """

    source: str
    tool_use: str | None = None
    needs: tuple[str, ...] = ()

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict] | None,
        add_generation_prompt: bool,
        special_tokens: Mapping[str, str],
    ) -> tuple[str, list[Span] | None]:
        """The text of a conversation and where the assistant speaks in it; None if the template has no marks for that.

        `special_tokens` are names for the template, such as bos_token. It may raise anything: somebody else wrote it.
        """
        source = self.tool_use if tools and self.tool_use is not None else self.source
        template, has_marks = _compiled(source)
        conversation = {"messages": messages, "tools": tools, "documents": None}
        rendered = template.render(conversation, add_generation_prompt=add_generation_prompt, **special_tokens)
        pieces = rendered.split(_MARK)  # in turn what the template writes and what the assistant says
        ends = list(accumulate(map(len, pieces)))
        spans = list(zip(ends[::2], ends[1::2], strict=False))
        return "".join(pieces), spans if has_marks else None


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError in what runs in here if it takes longer, without a thread; slow, so for a trial only."""
    deadline = time.monotonic() + seconds

    def watch(frame: Any, event: str, argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not end within {seconds:g} s")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


_CHATML = (Path(__file__).parent / "templates" / "chatml.jinja").read_text(encoding="utf-8")
TEMPLATES = {"chatml": Template(_CHATML, needs=("<|im_start|>", "<|im_end|>"))}
"""Ours, by the name that a recipe gives."""
