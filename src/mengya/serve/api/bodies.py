"""What clients send, as OpenAI's protocol has it, and the fields that vLLM added.

Unknown fields are taken and ignored."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt

from mengya.infer.request import Sampling
from mengya.serve.api.errors import ApiError

Id = Annotated[StrictInt, Field(ge=0, lt=2**31)]
"""A token; whether a model has it, its backend knows."""
Ids = Annotated[list[Id], Field(min_length=1)]
HARMLESS = frozenset(
    "audio best_of functions function_call metadata modalities name parallel_tool_calls prediction prompt_cache_key "
    "reasoning_effort safety_identifier service_tier store stream_options user verbosity".split()
)
"""Fields of the protocol that change nothing here, or are refused elsewhere if they would."""
NOT_HERE = dict.fromkeys(
    "guided_json guided_regex guided_choice guided_grammar structured_outputs grammar json_schema regex ebnf".split(),
    "/v1/chat/completions takes a JSON schema in response_format",
) | {
    "use_beam_search": "use n",
    "allowed_token_ids": "use logit_bias",
    "bad_words": "use logit_bias",
}
"""Fields of other servers that would change the answer there, and what there is instead."""
_SAME = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "seed")
"""Fields that have the names and meanings of `Sampling`."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class StreamOptions(_Open):
    include_usage: bool | None = None


class Drawing(_Open):
    """How answers are drawn, of all forms."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Id] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[Annotated[int, Field(ge=0, lt=2**31)], float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def sampling(self, default: Sampling, longest: int, length: int | None) -> Sampling:
        """`longest`: what the server gives at most; `length`: what is asked for. UserError, ApiError."""
        if length is not None and length < 1:
            raise ApiError(400, f"max_tokens={length} is out of range; choose 1 or more", param="max_tokens")
        given = {name: value for name in _SAME if (value := getattr(self, name)) is not None}
        if self.top_k is not None:
            given["top_k"] = 0 if self.top_k == -1 else self.top_k  # vLLM's way to say "all"
        most = min(length or longest, longest)
        lengths = {"max_new_tokens": most, "min_new_tokens": min(self.min_tokens or 0, most)}
        return dataclasses.replace(default, **given, **lengths)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def counts(self) -> bool:
        """Whether a stream is to end with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class Part(_Open):
    type: str
    text: str | None = None


class CalledFunction(_Open):
    name: str
    arguments: str | dict[str, Any] | None = None


class Call(_Open):
    id: str | None = None
    function: CalledFunction


class Message(_Open):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    function_call: dict[str, Any] | None = None


class Function(_Open):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Open):
    type: Literal["function"]
    function: Function


class NamedFunction(_Open):
    name: str


class NamedTool(_Open):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Open):
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(_Open):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatBody(Drawing):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    """The newer name of `max_tokens`, which it overrules."""
    logprobs: StrictBool | None = None
    top_logprobs: int | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    knowledge_base: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """Answer from the documents of this knowledge base, with citations; a field of ours."""


class CompletionBody(Drawing):
    prompt: str | Ids | Annotated[list[str] | list[Ids], Field(min_length=1)]
    echo: bool | None = None
    logprobs: Annotated[int | None, BeforeValidator(lambda given: None if given is False else given)] = None
    suffix: str | None = None
    best_of: int | None = None


class EmbeddingBody(_Open):
    model: str | None = None
    input: str | Ids | Annotated[list[str] | list[Ids], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class OlderBody(Drawing):
    """Of /ai/llm: as the form was published, and what else its engine took."""

    message: str
    history: list[Message] | list[Annotated[list[str], Field(min_length=2, max_length=2)]] | None = None
