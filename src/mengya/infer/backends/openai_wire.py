"""Requests and answers in the words of OpenAI's protocol, and of the many servers that speak it more or less.

https://platform.openai.com/docs/api-reference/chat and /completions. Thoughts, which DeepSeek, Qwen and vLLM send in a
field of their own, and calls of tools come back as the words that models write, so that an answer is one text
everywhere.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mengya.errors import UserError
from mengya.infer.request import LOWEST, Conversation, Finish, LogProb, Piece, Request, Sampling, Usage
from mengya.text.tools import as_fields, has_words

NO_TOKEN = -1
"""Stands for the number of a token, which the protocol does not tell."""
_FINISHES: dict[str, Finish] = {"length": "length", "content_filter": "error", "error": "error", "abort": "error"}


def arguments(request: Request, model: str, newer: bool) -> dict[str, Any]:
    """Of a streaming call of chat.completions, or of completions if the prompt is no conversation. `newer`: with
    OpenAI's own name for the longest answer, which others do not know. UserError for what the protocol cannot say."""
    if request.grammar is not None:
        raise UserError("a server elsewhere cannot be held to a grammar; leave it out, or use a local model")
    if request.prompt_logprobs:
        raise UserError("a server elsewhere tells no log-probabilities of a prompt; use a local model")
    sampling = request.sampling
    chat = isinstance(request.prompt, Conversation)
    values: dict[str, Any] = {
        "model": model,
        "stream": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_completion_tokens" if chat and newer else "max_tokens": sampling.max_new_tokens,
    }
    optional = {
        "n": request.n if request.n > 1 else None,
        "stop": list(request.stop),
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": {str(token): bias for token, bias in request.logit_bias.items()},
        "extra_body": _beyond(request),
    }
    values |= {name: value for name, value in optional.items() if value}
    if sampling.seed is not None:
        values["seed"] = sampling.seed
    return values | (_conversation(request) if chat else _text(request))


def with_thinking(values: dict[str, Any], model: str) -> dict[str, Any]:
    """For DashScope, some of whose models think unless they are told not to, and some cannot do otherwise."""
    thinks = any(word in model.lower() for word in ("thinking", "qwq", "qvq"))
    return values | {"extra_body": values.get("extra_body", {}) | {"enable_thinking": thinks}}


def _conversation(request: Request) -> dict[str, Any]:
    assert isinstance(request.prompt, Conversation)
    messages, tools = [dict(message) for message in request.prompt.messages], request.prompt.tools
    if has_words(messages):
        fields, offered = as_fields(messages)
        if not (offered and tools):
            messages, tools = fields, tools or offered
    values: dict[str, Any] = {"messages": [_wire(message) for message in messages]}
    if tools:
        values["tools"] = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    if request.logprobs is not None:
        values |= {"logprobs": True, "top_logprobs": request.logprobs}
    return values


def _text(request: Request) -> dict[str, Any]:
    prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
    return {"prompt": prompt} | ({} if request.logprobs is None else {"logprobs": request.logprobs})


def _beyond(request: Request) -> dict[str, Any]:
    """What the protocol has no field for, by the names that vLLM and others gave it; only what is asked for."""
    sampling, usual = request.sampling, Sampling()
    named = {
        "top_k": (sampling.top_k, usual.top_k),
        "min_p": (sampling.min_p, usual.min_p),
        "repetition_penalty": (sampling.repetition_penalty, usual.repetition_penalty),
        "min_tokens": (sampling.min_new_tokens, usual.min_new_tokens),
        "stop_token_ids": (list(request.stop_ids), []),
        "ignore_eos": (request.ignore_eos, False),
    }
    return {name: value for name, (value, default) in named.items() if value != default}


def _wire(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as it is sent: the arguments of calls as JSON, and nothing that only we know."""
    known = ("role", "content", "name", "tool_calls", "tool_call_id")
    sent = {name: message[name] for name in known if message.get(name) is not None}
    if calls := sent.get("tool_calls"):
        sent["tool_calls"] = [_call(call, number) for number, call in enumerate(calls)]
    elif "content" not in sent:
        sent["content"] = ""
    return sent


def _call(call: Mapping[str, Any], number: int) -> dict[str, Any]:
    function = call.get("function", call)
    given = function.get("arguments", {})
    written = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    named = {"name": function.get("name"), "arguments": written}
    return {"id": call.get("id") or f"call{number + 1:05d}", "type": "function", "function": named}


class Reader:
    """The chunks of a stream in, pieces out. Those that finish come at the end, when it is known what was used."""

    def __init__(self, n: int):
        self.begun = False
        """Whether anything came of the answer."""
        self._choices = [_Choice(number) for number in range(n)]
        self._usage: Any = None

    @property
    def finished(self) -> bool:
        """Whether all choices have ended."""
        return all(choice.finish is not None for choice in self._choices)

    @property
    def complete(self) -> bool:
        """Whether nothing more is to come."""
        return self.finished and self._usage is not None

    def take(self, chunk: Any) -> Iterator[Piece]:
        self._usage = getattr(chunk, "usage", None) or self._usage
        for given in getattr(chunk, "choices", None) or ():
            number = given.index or 0
            if number < len(self._choices):
                self.begun = True
                piece = self._choices[number].take(given)
                if piece.text or piece.logprobs:
                    yield piece

    def end(self) -> Iterator[Piece]:
        """The last pieces, of those that have ended."""
        for choice in self._choices:
            if choice.finish is not None:
                usage = self._share(choice.number)
                yield Piece(choice.number, "", finish=choice.finish, usage=usage, error=choice.error)

    def _share(self, number: int) -> Usage:
        """What one choice used: all alike, since only their sum is told; zeros if not even that."""

        def told(name: str, of: Any = self._usage) -> int:
            return getattr(of, name, None) or 0

        each, rest = divmod(told("completion_tokens"), len(self._choices))
        cached = told("cached_tokens", getattr(self._usage, "prompt_tokens_details", None))
        return Usage(told("prompt_tokens"), each + (number < rest), cached)


class _Choice:
    def __init__(self, number: int):
        self.number = number
        self.finish: Finish | None = None
        self.error: str | None = None
        self._thinks = False
        self._last = "\n"
        """The last character that was said."""
        self._call: dict[str, Any] | None = None

    def take(self, given: Any) -> Piece:
        delta = getattr(given, "delta", None)
        said = "" if delta is None else self._delta(delta)
        said += self._say(getattr(given, "text", None) or "")
        if given.finish_reason:
            self.finish = _FINISHES.get(given.finish_reason, "stop")
            if self.finish == "error":
                self.error = f"the server ended the answer: {given.finish_reason}; ask something else"
            said += self._said_call() + (self._thought() if self.finish == "stop" else "")
        return Piece(self.number, said, logprobs=tuple(_logprobs(getattr(given, "logprobs", None))))

    def _delta(self, delta: Any) -> str:
        said = ""
        if thought := getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None):
            said += self._say(("" if self._thinks else "<think>\n") + thought)
            self._thinks = True
        if content := getattr(delta, "content", None) or getattr(delta, "refusal", None):
            said += self._thought() + self._say(content)
        for part in getattr(delta, "tool_calls", None) or ():
            said += self._thought() + self._called(part)
        return said

    def _say(self, text: str) -> str:
        self._last = text[-1:] or self._last
        return text

    def _thought(self) -> str:
        """The end of a thought, if there is one."""
        ended, self._thinks = self._thinks, False
        return self._say("\n</think>\n\n") if ended else ""

    def _called(self, part: Any) -> str:
        """A part of a call; what is whole by it. Some servers number no calls or all of them alike, some name each part
        anew: a name with another id begins a call, and so does another number."""
        function, begun = part.function, self._call
        name = getattr(function, "name", None) or ""
        number, given_id = getattr(part, "index", None), getattr(part, "id", None)
        other_id = bool(begun and name and begun["name"] and given_id and given_id != begun["id"])
        if begun is None or other_id or (number is not None and number != begun["index"]):
            said = self._said_call()
            begun = self._call = {"index": number, "id": given_id, "name": "", "arguments": ""}
        else:
            said = ""
        begun["name"] = begun["name"] or name
        begun["arguments"] += _text_of(getattr(function, "arguments", None))
        return said

    def _said_call(self) -> str:
        """The words of the call that is open, if there is one."""
        call, self._call = self._call, None
        if call is None or not (call["name"] or call["arguments"]):
            return ""
        try:
            given = json.loads(call["arguments"] or "{}")
        except ValueError:  # such as one that was cut off: whoever parses the words is told so
            given = call["arguments"]
        written = json.dumps({"name": call["name"], "arguments": given}, ensure_ascii=False)
        return self._say(("" if self._last == "\n" else "\n") + f"<tool_call>\n{written}\n</tool_call>")


def _text_of(given: Any) -> str:
    """Arguments, which some send as an object."""
    return given if isinstance(given, str) else "" if given is None else json.dumps(given, ensure_ascii=False)


def _logprobs(given: Any) -> Iterator[LogProb]:
    """Of a chunk: those of a chat, or of a text."""
    for entry in getattr(given, "content", None) or ():
        top = tuple(_logprob(other.token, other.logprob, other.bytes) for other in entry.top_logprobs or ())
        yield _logprob(entry.token, entry.logprob, entry.bytes)._replace(top=top)
    tokens: Sequence[str] = getattr(given, "tokens", None) or ()
    tops = getattr(given, "top_logprobs", None) or [None] * len(tokens)
    for token, value, others in zip(tokens, given.token_logprobs if tokens else (), tops, strict=False):
        best = sorted((others or {}).items(), key=lambda other: -other[1])
        yield _logprob(token, value)._replace(top=tuple(_logprob(*other) for other in best))


def _logprob(token: str, value: float | None, spelled: Sequence[int] | None = None) -> LogProb:
    written = token.encode(errors="surrogatepass") if spelled is None else bytes(spelled)
    return LogProb(NO_TOKEN, written, None if value is None else max(value, LOWEST))
