"""Chat templates: Jinja programs from anybody, rendered in a sandbox; `TEMPLATES` are ours."""

import json
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import AfterValidator

from mengya.errors import UserError
from mengya.text.tokenizer import CONFIG, Tokenizer, as_json, json_object, read_files

Span = tuple[int, int]
"""From the first character to the one after the last."""

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/")


@dataclass(frozen=True)
class Template:
    """How a conversation is written: Jinja `source`, or `tool_use` where tools are offered and it is not None.

    `needs` are the control tokens that it writes and a tokenizer must have, or names of such, as "eos_token"; known
    only of ours.
    """

    source: str
    tool_use: str | None = None
    needs: tuple[str, ...] = ()

    def render(
        self, messages: list, tools: list | None, prompt: bool, special_tokens: Mapping[str, str]
    ) -> tuple[str, list[Span] | None]:
        """The text of a conversation and where the assistant speaks in it; None if the template has no marks. Any
        exception, as it is a program that somebody else wrote."""
        source = self.tool_use if tools and self.tool_use is not None else self.source
        values = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        template, has_marks = _compiled(source)
        pieces = template.render(values, **special_tokens).split(_MARK)  # in turn what it writes, what is generated
        ends = list(accumulate(map(len, pieces)))
        return "".join(pieces), list(zip(ends[::2], ends[1::2], strict=False)) if has_marks else None


_NEEDS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "baichuan2": ("<reserved_106>", "<reserved_107>", "eos_token"),
    "chatglm2": ("[gMASK]", "sop", "eos_token"),
    "chatglm3": ("[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    "glm4": ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    "tiny-llama2": ("bos_token", "eos_token"),
}
_FOLDER = Path(__file__).parent / "templates"
TEMPLATES = {
    name: Template((_FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), needs=needs)
    for name, needs in _NEEDS.items()
}
"""Our templates, by the name that a recipe gives."""


def _known(name: str) -> str:
    if name not in TEMPLATES:
        raise ValueError(f"template={name!r} is not one of ours; use one of {', '.join(TEMPLATES)}, or leave it out")
    return name


TemplateName = Annotated[str, AfterValidator(_known)]
"""A template of ours, in a config."""


# What `{% generation %}` writes before and after its body. It is random, so that no text can contain it.
_MARK = f"\ufdd0{secrets.token_hex(8)}\ufdd0"


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant says, as transformers and trl read it."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark = nodes.Output([nodes.TemplateData(_MARK)])
        return nodes.Scope([mark, *body, mark]).set_lineno(line)


def without_marks(source: str) -> str:
    """The same template for readers that do not know `{% generation %}`."""
    source = re.sub(r"\{%([-+]?)\s*generation\s*([-+]?)%\}", r"{%\1 if true \2%}", source)
    return re.sub(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", r"{%\1 endif \2%}", source)


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


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError if the block takes longer. It slows the block down, so use it for a trial only."""
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


def with_named(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """The tokenizer with our template of that name. Its control tokens become those of the tokenizer, if they are in
    its vocabulary as plain entries, as those of Baichuan are. UserError if it lacks them."""
    needs = [tokenizer.special_tokens.get(token, token) for token in TEMPLATES[name].needs]
    unmarked = [token for token in needs if token not in tokenizer.control_ids]
    missing = [token for token in unmarked if not tokenizer.has(token)]
    if missing:
        grow = ", or grow the tokenizer (tokenizer.extend), which adds them" if name == "chatml" else ""
        raise UserError(
            f"{tokenizer.origin} lacks {', '.join(missing)}, which the template {name!r} writes; unset template to use "
            f"the model's own{grow}"
        )
    files = {path: content for path, content in tokenizer.files.items() if not path.startswith(_TEMPLATE_FILES)}
    config = json_object(files, CONFIG) | {"chat_template": TEMPLATES[name].source}
    if unmarked:
        key = "extra_special_tokens" if isinstance(config.get("extra_special_tokens"), list) else _ADDITIONAL
        config[key] = [*(config.get(key) or []), *unmarked]
    return Tokenizer(files | {CONFIG: as_json(config)}, tokenizer.origin)


_ADDITIONAL = "additional_special_tokens"


def own_template(files: Mapping[str, bytes]) -> Template | None:
    """The template in the files of a tokenizer, where transformers looks for it; None if there is none."""
    stored = json_object(files, CONFIG).get("chat_template")
    stored = stored or json_object(files, "chat_template.json").get("chat_template") or []
    if isinstance(stored, str):
        stored = [{"name": "default", "template": stored}]
    named = {entry["name"]: entry["template"] for entry in stored}
    for name, content in files.items():
        if name.endswith(".jinja"):
            named["default" if name == "chat_template.jinja" else Path(name).stem] = content.decode(errors="replace")
    return Template(named["default"], named.get("tool_use")) if "default" in named else None


def with_template_of(old: Path, grown: Tokenizer) -> Tokenizer:
    """A tokenizer that was grown from the one in `old`, with the chat template and the named tokens of that one.

    If that has no template: with ours, and our names. The class is the one that reads tokenizer.json as it stands.
    """
    files = read_files(old)
    if own_template(files) is None:
        return with_named(grown, "chatml")
    config = json_object(files, CONFIG) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    beside = ("special_tokens_map.json", *_TEMPLATE_FILES)
    files = {name: content for name, content in files.items() if name.startswith(beside)}
    return Tokenizer(grown.files | files | {CONFIG: as_json(config)})
