"""vLLM's engine in this process, for a model directory: it computes and draws; templates, tokens and texts are ours."""

import itertools
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mengya.errors import UserError
from mengya.infer.backends import Deliver, Load
from mengya.infer.backends.prompts import token_ids
from mengya.infer.backends.tasks import Pieces, Tasks, Ticket
from mengya.infer.request import (
    LOWEST,
    Finish,
    GrammarMaker,
    LogProb,
    Piece,
    Prompt,
    Request,
    Usage,
    check_tokens,
)
from mengya.infer.sampling import Scored
from mengya.infer.stream import Answer, joined, named
from mengya.text.chat import Chat
from mengya.text.template import own_template
from mengya.text.tokenizer import Tokenizer


class Vllm:
    """Many requests at once, as vLLM batches them. Its random numbers are its own, so that a seed gives another answer
    than in our engine."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str | None = None,
        trust_remote_code: bool = False,
        options: Mapping[str, Any] | None = None,
    ):
        """`options`: of vLLM's AsyncEngineArgs, such as tensor_parallel_size. UserError if vLLM is not there, or does
        not take the model or the options."""
        if not directory.is_dir():
            raise UserError(f"{directory} is not a directory; give a model directory")
        engine_args, self._engine_class, self._parameters = _library()
        self.tokenizer = Tokenizer.load(directory)
        self.chat = Chat(self.tokenizer) if own_template(self.tokenizer.files) else None
        self._ends = frozenset(self.chat.stop_ids if self.chat else {self.tokenizer.eos_id})
        values = {"model": str(directory), "trust_remote_code": trust_remote_code} | dict(options or {})
        try:
            arguments = engine_args(**values)
        except TypeError as error:
            raise UserError(f"vLLM does not take these options ({error}); correct --options") from error
        self.name = name or directory.name
        self._numbers = itertools.count()
        self._tasks = Tasks(f"vLLM of {self.name}", lambda error: f"vLLM failed: {type(error).__name__}: {error}")
        try:
            self._engine = self._tasks.run(self._start(arguments))
        except BaseException:
            self._tasks.close()
            raise
        self.context: int = self._engine.model_config.max_model_len
        self.about = f"vLLM · 上下文 context {self.context}"

    def submit(self, request: Request, deliver: Deliver) -> Ticket:
        if request.grammar is not None:
            raise UserError("vLLM does not take our grammars; leave it out, or use our engine")
        prompt = self.encode(request.prompt)
        check_tokens(request, prompt, self.context, self.tokenizer.vocab_size)
        parameters = self._parameters(**self._asked(request))

        async def begin() -> Pieces:
            outputs = self._engine.generate({"prompt_token_ids": prompt}, parameters, f"mengya-{next(self._numbers)}")
            return self._pieces(request, prompt, outputs)

        return self._tasks.submit(begin, request.n, deliver, len(prompt))

    def encode(self, prompt: Prompt) -> list[int]:
        return token_ids(prompt, self.tokenizer, self.chat, self.name)

    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        raise UserError("vLLM's engine is only asked for answers here; use our engine for embeddings")

    def grammar(self, schema: Mapping[str, Any]) -> GrammarMaker:
        raise UserError("vLLM's engine is not held to a form here; use our engine")

    def load(self) -> Load:
        return self._tasks.load()

    def close(self) -> None:
        async def shut_down() -> None:
            engine, self._engine = self._engine, None  # it must not live until modules are gone, which it would use
            engine.shutdown()

        self._tasks.close(shut_down)

    async def _start(self, arguments: Any) -> Any:
        """In the loop that will use it."""
        return self._engine_class.from_engine_args(arguments)

    def _asked(self, request: Request) -> dict[str, Any]:
        """The arguments of vLLM's SamplingParams."""
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling
        return {
            "n": request.n,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "max_tokens": sampling.max_new_tokens,
            "min_tokens": sampling.min_new_tokens,
            "seed": sampling.seed,
            "stop": list(request.stop) or None,
            "stop_token_ids": sorted(request.ends(self._ends)),
            "ignore_eos": request.ignore_eos,
            "logit_bias": dict(request.logit_bias) or None,
            "logprobs": request.logprobs,
            "prompt_logprobs": (request.logprobs or 0) if request.prompt_logprobs else None,
            "output_kind": RequestOutputKind.DELTA,
        }

    async def _pieces(self, request: Request, prompt: Sequence[int], outputs: AsyncGenerator[Any, None]) -> Pieces:
        choices = [_Choice(self, request, number, len(prompt)) for number in range(request.n)]
        scores: tuple[LogProb, ...] = ()
        try:
            async for output in outputs:
                scores = scores or self._prompt_scores(request, prompt, output.prompt_logprobs)
                for given in output.outputs:
                    piece = choices[given.index].take(given, output.num_cached_tokens or 0)
                    if given.index == 0:
                        piece, scores = piece._replace(prompt_logprobs=scores), ()
                    if piece.text or piece.finish or piece.prompt_logprobs:
                        yield piece
        finally:
            await outputs.aclose()  # vLLM forgets the request

    def _prompt_scores(self, request: Request, prompt: Sequence[int], tables: Any) -> tuple[LogProb, ...]:
        if not (request.prompt_logprobs and tables):
            return ()
        first = LogProb(prompt[0], self.tokenizer.token_bytes[prompt[0]], None)
        scored = (_scored(token, table, request) for token, table in zip(prompt[1:], tables[1:], strict=True))
        return (first, *(named(self.tokenizer, *each) for each in zip(prompt[1:], scored, strict=True)))


class _Choice:
    """One choice: its tokens become texts as in our engine; vLLM ends it."""

    def __init__(self, backend: Vllm, request: Request, number: int, prompt_tokens: int):
        self._request, self._prompt_tokens = request, prompt_tokens
        self._ends = request.ends(backend._ends)
        self._answer = Answer(backend.tokenizer, request.stop, number)
        self._count = 0
        self._number = number

    def take(self, given: Any, cached: int) -> Piece:
        tables = given.logprobs or [None] * len(given.token_ids)
        said = Piece(self._number, "")
        for token, table in zip(given.token_ids, tables, strict=True):
            self._count += 1
            if token not in self._ends:
                said = joined(said, self._answer.push(token, _scored(token, table, self._request) if table else None))
        if given.finish_reason is None:
            return said
        usage = Usage(self._prompt_tokens, self._count, cached)
        finish = _FINISHES.get(given.finish_reason, "error")
        error = f"vLLM ended the answer: {given.finish_reason}" if finish == "error" else None
        return joined(said, self._answer.flush())._replace(finish=finish, usage=usage, error=error)


_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length", "abort": "cancelled"}


def _scored(token: int, table: Mapping[int, Any], request: Request) -> Scored:
    """Of vLLM's table, which has the token besides the likeliest ones."""
    best = sorted(((other, max(each.logprob, LOWEST)) for other, each in table.items()), key=lambda each: -each[1])
    return Scored(max(table[token].logprob, LOWEST), tuple(best[: request.logprobs or 0]))


def _library() -> tuple[Callable[..., Any], Any, Callable[..., Any]]:
    """What of vLLM makes the engine's arguments, the engine, and how is drawn."""
    try:
        from vllm import AsyncEngineArgs, SamplingParams
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) and error.name == "vllm" else f" ({error})"
        raise UserError(f"vLLM cannot be loaded{reason}; pip install vllm, for the torch that is there") from error
    return AsyncEngineArgs, AsyncLLM, SamplingParams
