"""A server that speaks OpenAI's protocol, wherever it is, through the official client.

The key is the environment's: OPENAI_API_KEY, or DASHSCOPE_API_KEY for Alibaba's DashScope. It is never shown, nor is
what stands behind a "?" in the address.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from torch import Tensor

from mengya.errors import UserError
from mengya.infer.backends import Deliver, Load
from mengya.infer.backends.openai_wire import Reader, arguments, with_thinking
from mengya.infer.backends.tasks import Pieces, Tasks, Ticket
from mengya.infer.request import Conversation, GrammarMaker, Prompt, Request

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_CONNECT = 10.0
"""Seconds for a connection."""
_SILENCE = 300.0
"""Seconds that the server may say nothing."""
_SHORTEST = 6
"""Characters of a secret: shorter ones, such as a version in the address, stand in any text."""
_LONGEST = 300
"""Characters of what a server says about an error."""


class Remote:
    """`context` and `encode` are not known: the server says when a conversation is too long."""

    context = 0

    def __init__(self, source: str, *, name: str | None = None, silence: float = _SILENCE):
        """`source`: an address such as https://host/v1, and "#model" behind it; left out, the only one that the server
        has. UserError if it cannot be reached, or the model is not clear."""
        address = _Address(source)
        self._address = address
        self._tells_usage: bool | None = None
        """Whether the server takes the question; None: not known yet."""
        self._client = _client(address, silence)
        self._tasks = Tasks(f"client of {address.shown}", lambda error: _explain(error, address, silence))
        try:
            self._model = address.model or self._only_model()
        except BaseException:
            self.close()
            raise
        self.name = name or self._model.rpartition("/")[2]
        self.about = address.shown

    def submit(self, request: Request, deliver: Deliver) -> Ticket:
        values = arguments(request, self._model, self._address.host == "api.openai.com")
        chat = isinstance(request.prompt, Conversation)
        if chat and _is_dashscope(self._address.host):
            values = with_thinking(values, self._model)

        async def begin() -> Pieces:
            stream = await self._call(values, chat)
            return self._pieces(stream, Reader(request.n))

        return self._tasks.submit(begin, request.n, deliver)

    def encode(self, prompt: Prompt) -> list[int]:
        raise self._unknown()

    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        raise UserError(f"{self._address.shown} is only asked for answers; use a local model for embeddings")

    def grammar(self, schema: Mapping[str, Any]) -> GrammarMaker:
        raise UserError(f"{self._address.shown} cannot be held to a form from here; use a local model")

    def load(self) -> Load:
        return self._tasks.load()

    def close(self) -> None:
        self._tasks.close(self._client.close)

    def _unknown(self) -> UserError:
        return UserError(f"{self._address.shown} does not tell the tokens of a text; use a local model for that")

    def _only_model(self) -> str:
        async def listed() -> list[str]:
            return [model.id async for model in self._client.models.list()]

        names = self._tasks.run(listed())
        if len(names) != 1:
            shown, known = self._address.shown, ", ".join(names[:20]) or "none"
            raise UserError(f"{shown} has {len(names)} models; name one behind the address, {shown}#NAME: {known}")
        return names[0]

    async def _call(self, values: Mapping[str, Any], chat: bool) -> Any:
        """The stream of an answer. Asks what was used, unless the server refuses that, as some do in words of their
        own: so a first request that is refused is sent again without."""
        from openai import BadRequestError, UnprocessableEntityError

        completions: Any = self._client.chat.completions if chat else self._client.completions
        if self._tells_usage is not False:
            try:
                stream = await completions.create(**values, stream_options={"include_usage": True})
                self._tells_usage = True
                return stream
            except (BadRequestError, UnprocessableEntityError):
                if self._tells_usage:
                    raise
        stream = await completions.create(**values)
        self._tells_usage = False
        return stream

    async def _pieces(self, stream: Any, reader: Reader) -> Pieces:
        try:
            async with stream:
                async for chunk in stream:
                    for piece in reader.take(chunk):
                        yield piece
                    if reader.complete:
                        break
        except Exception:
            if not reader.finished:  # else only what was used is missing
                raise
        for piece in reader.end():
            yield piece
        if not reader.finished:
            where = self._address.shown
            raise UserError(
                f"{where} stopped in the middle of the answer; ask again"
                if reader.begun
                else f"{where} sent no answer; give the address of a server that speaks OpenAI's protocol"
            )


def _is_dashscope(host: str) -> bool:
    return host.startswith("dashscope") and host.endswith(".aliyuncs.com")


class _Address:
    """UserError if it is none, or the key in the environment cannot be one."""

    def __init__(self, source: str):
        parts = urlsplit(source)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{parts.scheme}://{parts.hostname or ''} is no address; give one as https://host/v1#model")
        self.host: str = parts.hostname
        self.shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        """Without what may be secret."""
        self.base = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.model = unquote(parts.fragment)
        self.variable = "DASHSCOPE_API_KEY" if _is_dashscope(self.host) else "OPENAI_API_KEY"
        self.key = os.environ.get(self.variable, "").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise UserError(f"{self.variable} holds characters that no key has; copy the key again")
        self._secrets = [self.key, *self.query.values(), parts.username or "", parts.password or ""]

    def scrub(self, text: str) -> str:
        """What a server says, on one line, without what may be secret."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "***") if len(secret) >= _SHORTEST else text
        text = " ".join(text.split())
        return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _client(address: _Address, silence: float) -> "AsyncOpenAI":
    try:
        from openai import AsyncOpenAI, Timeout
    except ImportError as error:
        raise UserError(f"{address.shown} needs OpenAI's client; pip install 'mengya[remote]'") from error
    return AsyncOpenAI(
        api_key=address.key or "none",  # which servers without keys do not look at
        base_url=address.base,
        default_query=address.query,
        timeout=Timeout(silence, connect=_CONNECT),
    )


def _explain(error: Exception, address: _Address, silence: float) -> str:
    import openai

    where = address.shown
    if isinstance(error, openai.APIStatusError):
        return _refused(error, address)
    if isinstance(error, openai.APITimeoutError) or "Timeout" in type(error).__name__:
        return f"{where} said nothing for {silence:g} s; ask again later"
    if isinstance(error, openai.APIConnectionError) and not _was_connected(error):
        why = address.scrub(str(error.__cause__))
        return f"{where} cannot be reached ({why}); start the server, or correct the address"
    if isinstance(error, openai.APIError) and error.body is not None:  # in the middle of a stream
        return f"{where} failed: {address.scrub(error.message)}; ask again later"
    if isinstance(error, ValueError):
        return f"{where} sent what is no answer of OpenAI's protocol; give the address of a server that speaks it"
    return f"the connection to {where} broke ({type(error.__cause__ or error).__name__}); ask again"


def _was_connected(error: Exception) -> bool:
    return not type(error.__cause__).__name__.startswith("Connect")


def _refused(error: "APIStatusError", address: _Address) -> str:
    """What a status and the words with it mean. Those of a refused key may repeat it, or a part, so they are left
    out."""
    where, status = address.shown, error.status_code
    if status in (401, 403):
        return f"{where} refuses the key (HTTP {status}); set {address.variable} to one that is valid there"
    body = error.body
    said: Any = (body.get("message") or body.get("detail") or body) if isinstance(body, Mapping) else body
    words = address.scrub(str(said or "no reason given"))
    if status == 404:
        return f"{where} has no such model or path (HTTP 404: {words}); correct the address, which mostly ends in /v1"
    if status == 429:
        return f"{where} takes no more requests now (HTTP 429: {words}); ask again later"
    if status >= 500:
        return f"{where} failed (HTTP {status}: {words}); ask again later"
    return f"{where} refuses the request (HTTP {status}: {words}); change it"
