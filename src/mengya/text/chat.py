"""Conversations as tokens: a tokenizer and a chat template, and which tokens the assistant is taught."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import tokenizers
from pydantic import AfterValidator

from mengya.errors import UserError
from mengya.text.template import ROLES, TEMPLATES, Message, Span, Template, time_limit
from mengya.text.tokenizer import CONFIG, END_OF_TEXT, Tokenizer, as_json, json_object, read_files

__all__ = ["Chat", "Message", "TemplateName", "own_template", "with_template_of"]

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/")
_REMEDY = 'name one of ours in the recipe, e.g. sft.template = "chatml"'
_TRIAL_SECONDS = 5.0


def _known(name: str) -> str:
    if name not in TEMPLATES:
        raise ValueError(f"template={name!r} is not one of ours; use one of {', '.join(TEMPLATES)}, or leave it out")
    return name


TemplateName = Annotated[str, AfterValidator(_known)]
"""A template of ours, in a config."""


class Chat:
    """A tokenizer with a chat template: the one of its files, or the named one of ours, which then is in its files."""

    def __init__(self, tokenizer: Tokenizer, template: str | None = None):
        """UserError if there is no template, or it fails on a small conversation."""
        own = own_template(tokenizer.files)
        if template is not None and own != Template(TEMPLATES[template].source):
            own = TEMPLATES[template]
            missing = [token for token in own.needs if token not in tokenizer.control_ids]
            if missing:
                raise UserError(
                    f"{tokenizer.origin} lacks {', '.join(missing)}, which the template {template!r} writes; unset "
                    "template to use the model's own, or grow the tokenizer (tokenizer.extend), which adds them"
                )
            files = {name: content for name, content in tokenizer.files.items() if not name.startswith(_TEMPLATE_FILES)}
            config = json_object(files, CONFIG) | {"chat_template": own.source}
            tokenizer = Tokenizer(files | {CONFIG: as_json(config)}, tokenizer.origin)
        if own is None:
            raise UserError(f"{tokenizer.origin} has no chat template; {_REMEDY}")
        self.tokenizer = tokenizer
        self.template = own
        self.stop_ids: set[int] = self._try()
        """Tokens that end an assistant's turn."""

    @staticmethod
    def load(directory: Path, template: str | None = None) -> "Chat":
        return Chat(Tokenizer.load(directory), template)

    def encode(
        self, messages: Sequence[Message], tools: Sequence[dict] | None = None, add_generation_prompt: bool = False
    ) -> tuple[list[int], list[int]]:
        """Token ids of a conversation and, for each, 1 if it is supervised (what the assistant says, its end included).

        The ids are those of transformers' `apply_chat_template`. If the template does not mark what the assistant
        says, that is what it adds after the prompt for an answer; of what is only a prompt, nothing is supervised then.
        UserError for an unknown role, or if the template fails or does not tell what is supervised.
        """
        text, spans = self._render(messages, tools, add_generation_prompt)
        (encoding,) = self.tokenizer.encode_structure([text])
        return encoding.ids, _mask(encoding, spans)

    def encode_many(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[list[int], list[int]]]:
        """`encode` of each; faster, on several cores."""
        rendered = [self._render(messages) for messages in conversations]
        encodings = self.tokenizer.encode_structure([text for text, _ in rendered])
        return [(e.ids, _mask(e, spans)) for e, (_, spans) in zip(encodings, rendered, strict=True)]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[dict] | None = None, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """The text that transformers would tokenize, and where in it the assistant speaks."""
        for message in messages:
            if message["role"] not in ROLES:
                raise UserError(f"unknown role {message['role']!r}; use one of {', '.join(ROLES)}")
        safe = [self._safe({key: value for key, value in message.items() if value is not None}) for message in messages]
        safe_tools = self._safe(tools)
        text, spans = self._written(safe, safe_tools, add_generation_prompt)
        if spans is None:
            spans = [] if add_generation_prompt else self._additions(safe, safe_tools, text)
        return text, spans

    def _written(self, messages: list, tools: list | None, prompt: bool = False) -> tuple[str, list[Span] | None]:
        try:
            return self.template.render(messages, tools, prompt, self.tokenizer.special_tokens)
        except Exception as error:  # it is a program that somebody else wrote
            raised = f"{type(error).__name__} ({error})"
            raise UserError(
                f"the chat template of {self.tokenizer.origin} raises {raised}; correct the conversation, or {_REMEDY}"
            ) from error

    def _additions(self, messages: list, tools: list | None, text: str) -> list[Span]:
        """Where the assistant speaks: what each of its turns adds to the prompt before it."""
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt, _ = self._written(messages[:number], tools, prompt=True)
            through = text if number + 1 == len(messages) else self._written(messages[: number + 1], tools)[0]
            if not (text.startswith(through) and through.startswith(prompt)):
                raise UserError(
                    f"the chat template of {self.tokenizer.origin} writes a conversation otherwise once it goes on "
                    "(as some do that leave out earlier thoughts), so that it does not tell what the assistant is "
                    f"taught; use conversations with one answer, or {_REMEDY}"
                )
            spans.append((len(prompt), self._end_of_turn(through, len(prompt))))
        return spans

    def _end_of_turn(self, text: str, begin: int) -> int:
        """Behind the last control token of a turn, where nothing but white space follows it; else the end."""
        end = len(text.rstrip())
        return end if any(text.endswith(token, begin, end) for token in self.tokenizer.control_ids) else len(text)

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

    def _try(self) -> set[int]:
        """The tokens that end a turn; UserError if the template loops, raises or leaves out what is said."""
        messages = [{"role": "user", "content": "mengya"}, {"role": "assistant", "content": "sprout"}]
        with time_limit(_TRIAL_SECONDS):
            text, _ = self._render(messages)
            prompt, _ = self._render(messages[:1], add_generation_prompt=True)
        if not ("mengya" in text and "sprout" in text and "mengya" in prompt):
            raise UserError(f"the chat template of {self.tokenizer.origin} leaves out what the messages say; {_REMEDY}")
        ids, mask = self.encode(messages)
        last = [number for number, supervised in zip(ids, mask, strict=True) if supervised][-1:]
        ends = (END_OF_TEXT, self.tokenizer.special_tokens.get("eos_token"))
        return {number for token, number in self.tokenizer.control_ids.items() if token in ends or number in last}


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
