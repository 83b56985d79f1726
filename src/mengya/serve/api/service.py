"""What all routes share: the models by name, work begun for a request, what is the same in all answers."""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from mengya.errors import UserError
from mengya.infer.backends import Backend
from mengya.infer.request import GrammarMaker, Request, Usage
from mengya.serve.api.bodies import HARMLESS, NOT_HERE, Drawing
from mengya.serve.api.errors import ApiError, from_user_error
from mengya.serve.api.measures import Measures
from mengya.serve.api.settings import Settings
from mengya.serve.api.wanted import Schema
from mengya.serve.api.work import Work, Workshop

log = logging.getLogger("mengya.serve")
_MOST_NAMES = 100
"""Unknown fields that are named in the log; whoever sends more is playing."""
_LONGEST = 4096
"""Tokens of an answer, at most, where neither the operator nor the backend knows."""
FINISH = {"stop": "stop", "length": "length"}
"""How an answer may end, in the protocol's words; any other end of a backend is a stop."""


class Service:
    def __init__(self, settings: Settings, measures: Measures):
        self.settings, self.measures = settings, measures
        limits = settings.limits
        self.shop = Workshop(limits.open_answers, limits.answer_seconds, measures, settings.sources)
        self.created = int(time.time())
        self._named: set[str] = set()

    def model(self, name: str | None) -> tuple[str, Backend]:
        """The name that is served, and its backend. ApiError 404."""
        models = self.settings.models
        if name is not None and name in models:
            return name, models[name]
        if name is None or self.settings.any_name:
            return next(iter(models.items()))
        raise ApiError(
            404,
            f"The model {name[:100]!r} is not served here; there is {', '.join(models)}.",
            param="model",
            code="model_not_found",
        )

    def check_unknown(self, body: BaseModel) -> None:
        """Names, once, the fields that nothing reads: one of them may be a typing error. ApiError for those that would
        change the answer elsewhere."""
        extra = body.model_extra or {}
        for field, instead in NOT_HERE.items():
            if extra.get(field):
                raise ApiError(400, f"{field} is not supported; {instead}", param=field)
        for field in extra.keys() - HARMLESS - self._named:
            if len(self._named) < _MOST_NAMES:
                self._named.add(field)
                log.warning("the field %s of a request is unknown and ignored", ascii(field[:60]))

    def request(
        self,
        body: Drawing,
        backend: Backend,
        prompt: Any,
        length: int | None,
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        schema: Schema | None = None,
    ) -> Callable[[], Request]:
        """What makes the request of a body, in a thread. ApiError for a value that is out of range."""
        most = (self.settings.limits.new_tokens, backend.context)
        longest = min(filter(None, most), default=_LONGEST)
        try:
            fields: dict[str, Any] = {
                "prompt": prompt,
                "sampling": body.sampling(self.settings.sampling, longest, length),
                "n": body.choices,
                "stop": body.stops,
                "stop_ids": body.stop_token_ids or (),
                "ignore_eos": bool(body.ignore_eos),
                "logit_bias": body.logit_bias or {},
                "logprobs": logprobs,
                "prompt_logprobs": prompt_logprobs,
            }
            Request(**fields)  # all is said before any work is done
        except UserError as error:
            raise from_user_error(error) from error
        return lambda: Request(**fields, grammar=self._grammar(backend, schema))

    def _grammar(self, backend: Backend, schema: Schema | None) -> GrammarMaker | None:
        if schema is None:
            return None
        if self.settings.grammar_for is None:
            raise UserError("this server cannot hold answers to a form; ask for it in words")
        return self.settings.grammar_for(backend, schema)

    async def begin(
        self, model: str, backend: Backend, makers: Sequence[Callable[[], Request]], choices: int, param: str
    ) -> Work:
        work = Work(self.shop, model, backend, param)
        await work.begin(makers, choices)
        return work


def new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


class Bill:
    """Usage summed over choices and prompts; a prompt counts once, however many answers it gets."""

    def __init__(self) -> None:
        self._prompts: dict[int, Usage] = {}
        self.completion = 0

    def add(self, number: int, usage: Usage | None) -> None:
        if usage is not None:
            self._prompts[number] = max(usage, self._prompts.get(number, usage), key=lambda u: u.cached_tokens)
            self.completion += usage.completion_tokens

    def as_json(self) -> dict[str, Any]:
        prompt = sum(usage.prompt_tokens for usage in self._prompts.values())
        cached = sum(usage.cached_tokens for usage in self._prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion,
            "total_tokens": prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
