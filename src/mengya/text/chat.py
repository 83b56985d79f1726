"""Conversations as tokens: a tokenizer and a chat template, and which tokens the assistant is taught.

Chat templates are Jinja from anybody, rendered in a sandbox; `TEMPLATES` are ours.
"""

import json
import re
import secrets
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import jinja2
import tokenizers
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import AfterValidator

from mengya.errors import UserError
from mengya.text.tokenizer import CONFIG, END_OF_TEXT, Tokenizer, as_json, json_object, read_files

Message = dict[str, Any]
"""{"role": one of `ROLES`, "content": str or [{"type": "text", "text": str}, ...], perhaps "tool_calls", ...}.

In training, an assistant's message with "supervised": False is context, and not learnt."""

Span = tuple[int, int]
"""From the first character to the one after the last."""

_SUPERVISED = "supervised"
ROLES = ("system", "user", "assistant", "tool")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/")
_REMEDY = 'name one of ours in the recipe, e.g. sft.template = "chatml"'
_TRIAL_SECONDS = 5.0


@dataclass(frozen=True)
class Template:
    """How a conversation is written: Jinja `source`, or `tool_use` where tools are offered and it is not None.

    `needs` are the control tokens that it writes and a tokenizer must have, or names of such, as "eos_token"; known
    only of ours.
    """

    source: str
    tool_use: str | None = None
    needs: tuple[str, ...] = ()


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
def _time_limit(seconds: float) -> Iterator[None]:
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


class Rewritten(UserError):
    """A template writes a turn otherwise once the conversation goes on, so that one rendering does not tell what the
    assistant is taught in all of its turns; it does of the last one alone."""


class Chat:
    """A tokenizer with a chat template: its own, or the named one of ours, which is then added to its files."""

    def __init__(self, tokenizer: Tokenizer, template: str | None = None):
        """UserError if there is no template, or it fails on a small conversation."""
        own = own_template(tokenizer.files)
        if template is not None and own != Template(TEMPLATES[template].source):
            own = TEMPLATES[template]
            tokenizer = _with_template(tokenizer, template)
        if own is None:
            raise UserError(f"{tokenizer.origin} has no chat template; {_REMEDY}")
        self.tokenizer = tokenizer
        self.template = own
        self.stop_ids: set[int]
        """Tokens that end an assistant's turn."""
        self.teaches_the_end: bool
        """Whether the last token that is supervised of an answer is one of them."""
        self.stop_ids, self.teaches_the_end = self._try()

    @staticmethod
    def load(directory: Path, template: str | None = None) -> "Chat":
        return Chat(Tokenizer.load(directory), template)

    def encode(
        self, messages: Sequence[Message], tools: Sequence[dict] | None = None, add_generation_prompt: bool = False
    ) -> tuple[list[int], list[int]]:
        """Token ids of a conversation and, for each, 1 if it is supervised (what the assistant says, its end included;
        not in a message with "supervised": False).

        The ids are those of transformers' `apply_chat_template`. If the template does not mark what the assistant
        says, that is what it adds after the prompt for an answer (if it begins that otherwise: after the question), and
        with a generation prompt nothing is supervised.
        An answer that is the last, and alone supervised, stands after the prompt that it is an answer to, even if the
        template moves or drops a part of that prompt once it is answered. UserError for an unknown role, or if the
        template fails or does not tell what is supervised: `Rewritten` if it would, of one answer alone.
        """
        text, spans = self._render(messages, tools, add_generation_prompt)
        encoding = self.tokenizer.encode_structure(text)
        return encoding.ids, _mask(encoding, spans)

    def _render(
        self, messages: Sequence[Message], tools: Sequence[dict] | None = None, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """The text that transformers would tokenize, and where in it the assistant speaks."""
        for message in messages:
            if message["role"] not in ROLES:
                raise UserError(f"unknown role {message['role']!r}; use one of {', '.join(ROLES)}")
        safe = [self._safe(_plain(message)) for message in messages]
        safe_tools = self._safe(tools)
        text, spans = self._written(safe, safe_tools, add_generation_prompt)
        learnt = [message.get(_SUPERVISED, True) for message in messages if message["role"] == "assistant"]
        if spans is None:
            return (text, []) if add_generation_prompt else self._additions(safe, safe_tools, text, learnt)
        if all(learnt):
            return text, spans
        if len(spans) != len(learnt):
            raise UserError(
                f"the chat template of {self.tokenizer.origin} does not mark each answer by itself, so that the one "
                f"that is not to be learnt cannot be told; {_REMEDY}"
            )
        return text, [span for span, supervised in zip(spans, learnt, strict=True) if supervised]

    def _written(self, messages: list, tools: list | None, prompt: bool = False) -> tuple[str, list[Span] | None]:
        """The text of a conversation and where the assistant speaks in it; None if the template has no marks."""
        source = self.template.tool_use if tools and self.template.tool_use is not None else self.template.source
        values = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        try:
            template, has_marks = _compiled(source)
            rendered = template.render(values, **self.tokenizer.special_tokens)
        except Exception as error:  # it is a program that somebody else wrote
            raised = f"{type(error).__name__} ({error})"
            raise UserError(
                f"the chat template of {self.tokenizer.origin} raises {raised}; correct the conversation, or {_REMEDY}"
            ) from error
        pieces = rendered.split(_MARK)  # in turn what the template writes and what the assistant says
        ends = list(accumulate(map(len, pieces)))
        return "".join(pieces), list(zip(ends[::2], ends[1::2], strict=False)) if has_marks else None

    def _additions(self, messages: list, tools: list | None, text: str, learnt: list) -> tuple[str, list[Span]]:
        """`text` and where in it the assistant speaks: what each of its learnt turns adds to the prompt before it."""
        spans = []
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        for number in (number for number, supervised in zip(answers, learnt, strict=True) if supervised):
            prompt, _ = self._written(messages[:number], tools, prompt=True)
            last = number + 1 == len(messages)
            through = text if last else self._written(messages[: number + 1], tools)[0]
            if not through.startswith(prompt):  # which may begin a thought that an answer does not have
                without, _ = self._written(messages[:number], tools)
                prompt = without if through.startswith(without) else prompt
            if last and sum(learnt) == 1 and not through.startswith(prompt):
                text = through = prompt + self._addition(messages, tools, through)
            if not (text.startswith(through) and through.startswith(prompt)):
                raise Rewritten(
                    f"the chat template of {self.tokenizer.origin} writes a conversation otherwise once it goes on "
                    "(some leave out earlier thoughts), so that it does not tell what the assistant is taught; "
                    f"use conversations with one answer, or {_REMEDY}"
                )
            begin, end = len(prompt), len(through.rstrip())
            # White space behind the control token that ends a turn is not part of it.
            closed = any(through.endswith(token, begin, end) for token in self.tokenizer.control_ids)
            spans.append((begin, end if closed else len(through)))
        return text, spans

    def _addition(self, messages: list, tools: list | None, text: str) -> str:
        """What the last turn of `text` adds, of a template that moves the system prompt to the last question (as
        Mistral's does): what it adds where there is none. Rewritten if it moves something else."""
        system = messages[0]["role"] == "system"
        prompt = self._written(messages[1:-1], tools, prompt=True)[0] if system else text
        through = self._written(messages[1:], tools)[0] if system else ""
        added = through[len(prompt) :]
        if not (through.startswith(prompt) and added and text.endswith(added)):
            raise Rewritten(
                f"the chat template of {self.tokenizer.origin} writes a question otherwise once it is answered, so "
                f"that it does not tell what the assistant is taught; {_REMEDY}"
            )
        return added

    def _safe(self, value: Any) -> Any:
        """A copy in plain types, with every control token in it broken."""
        if isinstance(value, str):
            return self.tokenizer.defuse(value)
        if value is None or isinstance(value, int | float):
            return value
        if isinstance(value, Mapping):
            return {self._safe(key): self._safe(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self._safe(item) for item in value]
        raise UserError(f"a message holds {value!r}; use text, numbers, lists and objects")

    def _try(self) -> tuple[set[int], bool]:
        """`stop_ids` and `teaches_the_end`; UserError if the template loops, raises or leaves out what is said."""
        messages = _TRIAL
        with _time_limit(_TRIAL_SECONDS):
            text, _ = self._written(messages, None)
            prompt, _ = self._written(messages[:1], None, prompt=True)
        if not ("mengya" in text and "sprout" in text and "mengya" in prompt):
            raise UserError(f"the chat template of {self.tokenizer.origin} leaves out what the messages say; {_REMEDY}")
        last = {ids[-1] for ids in (self._learnt(messages), self._learnt([*messages, _RESULT])) if ids}
        ends = (END_OF_TEXT, self.tokenizer.special_tokens.get("eos_token"))
        stops = {number for token, number in self.tokenizer.control_ids.items() if token in ends or number in last}
        return stops, not stops.isdisjoint(self._learnt(messages)[-1:])

    def check_teaches(self) -> None:
        """UserError if the template does not tell what an assistant is taught."""
        if not any(self.encode(_TRIAL)[1]):
            raise UserError(
                f"the chat template of {self.tokenizer.origin} marks nothing that an assistant says; {_REMEDY}"
            )

    def _learnt(self, messages: list[Message]) -> list[int]:
        """The supervised tokens, without white space at their end; none if the template refuses the conversation."""
        try:
            ids = [number for number, supervised in zip(*self.encode(messages), strict=True) if supervised]
        except UserError:
            return []
        while (
            ids and ids[-1] not in self.tokenizer.control_ids.values() and not self.tokenizer.decode(ids[-1:]).strip()
        ):
            ids.pop()
        return ids


_TRIAL: list[Message] = [{"role": "user", "content": "mengya"}, {"role": "assistant", "content": "sprout"}]
_RESULT: Message = {"role": "tool", "content": "leaf"}


def _with_template(tokenizer: Tokenizer, name: str) -> Tokenizer:
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


def _plain(message: Message) -> Message:
    """A message as a template reads it: without our mark and what is None, arguments of calls as objects."""
    plain = {key: value for key, value in message.items() if value is not None and key != _SUPERVISED}
    if isinstance(calls := plain.get("tool_calls"), Sequence):
        plain["tool_calls"] = [_with_arguments(call) for call in calls]
    return plain


def _with_arguments(call: Any) -> Any:
    """A call whose arguments, which the wire has as JSON, are an object: templates would write a text as JSON again."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_arguments(call["function"])}
    given = call.get("arguments", {})
    if given in (None, ""):
        return {**call, "arguments": {}}
    try:
        decoded = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return call
    return {**call, "arguments": decoded} if isinstance(decoded, Mapping) else call


def _mask(encoding: tokenizers.Encoding, spans: Sequence[Span]) -> list[int]:
    """1 for each token with a character in one of the spans."""
    mask = [0] * len(encoding)
    offsets = encoding.offsets  # in order; some white space belongs to no token, and one character to several
    for begin, end in spans:
        if begin < end:
            first = bisect_right(offsets, begin, key=itemgetter(1))
            after = bisect_left(offsets, end, key=itemgetter(0))
            mask[first:after] = [1] * (after - first)
    return mask


def ends_of(tokenizer: Tokenizer) -> list[int]:
    """The tokens that end what a model with this tokenizer writes: an answer, or a document if it has no template."""
    return sorted(Chat(tokenizer).stop_ids) if own_template(tokenizer.files) else [tokenizer.eos_id]


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
        return Chat(grown, "chatml").tokenizer
    config = json_object(files, CONFIG) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    beside = ("special_tokens_map.json", *_TEMPLATE_FILES)
    files = {name: content for name, content in files.items() if name.startswith(beside)}
    return Tokenizer(grown.files | files | {CONFIG: as_json(config)})
