"""Conversations as tokens: a tokenizer and a chat template, and which tokens the assistant is taught."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from mengya.errors import UserError
from mengya.text.template import TEMPLATES, Span, Template, own_template, time_limit, with_named
from mengya.text.tokenizer import END_OF_TEXT, Encoded, Tokenizer
from mengya.text.tools import TRIAL, TRIAL_WORDS, as_fields, has_words, with_arguments

Message = dict[str, Any]
"""{"role": one of `ROLES`, "content": str or [{"type": "text", "text": str}, ...], perhaps "tool_calls", ...}.

In training, an assistant's message with "supervised": False is context, and not learnt."""

_SUPERVISED = "supervised"
ROLES = ("system", "user", "assistant", "tool")
_TRIAL_SECONDS = 5.0
_REMEDY = 'name one of ours in the recipe, e.g. sft.template = "chatml"'


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
            tokenizer = with_named(tokenizer, template)
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
        template moves or drops a part of that prompt once it is answered. UserError for a role that is unknown or that
        the template leaves out, if it fails, or does not tell what is supervised: `Rewritten` if it would, of one
        answer alone.
        """
        text, spans = self._render(messages, tools, add_generation_prompt)
        encoding = self.tokenizer.encode_structure(text)
        return encoding.ids, _mask(encoding, spans)

    def text(
        self, messages: Sequence[Message], tools: Sequence[dict] | None = None, add_generation_prompt: bool = False
    ) -> str:
        """What `encode` encodes. UserError as there."""
        return self._render(messages, tools, add_generation_prompt)[0]

    def writes(self, role: str) -> bool:
        """Whether the template takes turns of the role system or tool, and writes what they say."""
        return self._writes(("leaf",), _TRIALS[role]) is True

    def _render(
        self, messages: Sequence[Message], tools: Sequence[dict] | None = None, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """The text that transformers would tokenize, and where in it the assistant speaks."""
        for message in messages:
            if message["role"] not in ROLES:
                raise UserError(f"unknown role {message['role']!r}; use one of {', '.join(ROLES)}")
            if message["role"] in ("system", "tool") and message["role"] in self._left_out:
                raise UserError(
                    f"the chat template of {self.tokenizer.origin} leaves out what the role {message['role']} says; "
                    f"leave out such turns, or {_REMEDY}"
                )
        plain = [_plain(message) for message in messages]
        if tools is None and has_words(plain) and self._has_calls:
            fields, offered = as_fields(plain)
            if offered or self.template.tool_use is None:
                plain, tools = fields, offered
        safe, safe_tools = [self._safe(message) for message in plain], self._safe(tools)
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
        try:
            return self.template.render(messages, tools, prompt, self.tokenizer.special_tokens)
        except Exception as error:  # it is a program that somebody else wrote
            raised = f"{type(error).__name__} ({error})"
            raise UserError(
                f"the chat template of {self.tokenizer.origin} raises {raised}; correct the conversation, or {_REMEDY}"
            ) from error

    @cached_property
    def _has_calls(self) -> bool:
        """Whether the template writes tools, their calls and results from their fields, in whatever form."""
        return self._writes(TRIAL_WORDS, *as_fields(TRIAL)) is True

    @cached_property
    def _left_out(self) -> set[str]:
        """Roles whose turns the template drops without a word."""
        return {role for role, messages in _TRIALS.items() if self._writes(("leaf",), messages) is False}

    def _writes(self, words: Sequence[str], messages: list, tools: list | None = None) -> bool | None:
        """Whether the template writes `words`, which the messages hold; None if it refuses these."""
        try:
            text, _ = self._written(messages, tools, prompt=True)
        except UserError:
            return None
        return all(word in text for word in words)

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
        with time_limit(_TRIAL_SECONDS):
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
_TRIALS = {"system": [_RESULT | {"role": "system"}, _TRIAL[0]], "tool": [*_TRIAL, _RESULT]}
"""For each role that a template may leave out, a conversation in which it says "leaf"."""


def _plain(message: Message) -> Message:
    """A message as a template reads it: without our mark and what is None."""
    return with_arguments({key: value for key, value in message.items() if value is not None and key != _SUPERVISED})


def _mask(encoding: Encoded, spans: Sequence[Span]) -> list[int]:
    """1 for each token with a character in one of the spans."""
    mask = [0] * len(encoding.ids)
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
