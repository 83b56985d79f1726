"""A GGUF file as a backend: llama.cpp computes the logits, all else is done as in our engine."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from mengya.errors import UserError
from mengya.infer.backends import Deliver, Load
from mengya.infer.backends.gguf_model import GgufModel
from mengya.infer.backends.prompts import token_ids
from mengya.infer.backends.tasks import Choices
from mengya.infer.grammar import Grammars
from mengya.infer.request import (
    Conversation,
    Finish,
    GrammarMaker,
    LogProb,
    Piece,
    Prompt,
    Request,
    Usage,
    check_tokens,
)
from mengya.infer.sampling import Drawer, draw, score
from mengya.infer.stream import Answer, joined, named
from mengya.text.chat import Chat
from mengya.text.template import own_template


class LlamaCpp:
    """One choice at a time, in the order of the requests; what a prompt begins with is kept from the one before."""

    def __init__(self, path: Path, *, name: str | None = None, tokens: int | None = None):
        """Others: see `GgufModel`. Without a chat template in the file, only texts and tokens are continued."""
        self._model = GgufModel(path, tokens)
        self.tokenizer = self._model.tokenizer
        try:
            self.chat = Chat(self.tokenizer) if own_template(self.tokenizer.files) else None
        except UserError:
            self._model.close()
            raise
        self.name, self.about, self.context = name or path.stem, self._model.about, self._model.context
        self._ends = self.tokenizer.end_ids | (self.chat.stop_ids if self.chat else frozenset())
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = self._busy = False
        self._thread = threading.Thread(target=self._run, name=f"llama.cpp of {self.name}", daemon=True)
        self._thread.start()

    def submit(self, request: Request, deliver: Deliver) -> "_Job":
        with self._open():
            prompt = self._encode(request.prompt)
            check_tokens(request, prompt, self.context, self.tokenizer.vocab_size)
            job = _Job(request, prompt, deliver)
            self._jobs.put(job)
        return job

    def encode(self, prompt: Prompt) -> list[int]:
        with self._open():
            return self._encode(prompt)

    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        raise UserError(f"{self.name} is a GGUF file, which is only asked for answers; use a model directory")

    def grammar(self, schema: Mapping[str, Any]) -> GrammarMaker:
        return self._grammars.json_schema(schema)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self._ends)

    def load(self) -> Load:
        alive = self._thread.is_alive()
        return Load(int(alive and self._busy), self._jobs.qsize() if alive else 0, 0, 0)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        self._model.close()

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """The vocabulary may be used: it goes with the model, and a use after that would end the process."""
        with self._lock:
            if self._closed:
                raise UserError("the model is being closed; ask again later")
            if not self._thread.is_alive():
                raise UserError("llama.cpp has stopped working; start it again")
            yield

    def _encode(self, prompt: Prompt) -> list[int]:
        ids = token_ids(prompt, self.tokenizer, self.chat, self.name)
        if not isinstance(prompt, str | Conversation):
            return ids
        begun = not self.tokenizer.begins or ids[:1] == [self.tokenizer.bos_id]  # a template may write it or not
        return ids if begun else [self.tokenizer.bos_id, *ids]

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._busy = True
            choices = Choices(job.request.n, job.deliver, job.prompt_tokens)
            try:
                for choice in range(job.request.n):
                    self._write(job, choice, choices)
            except Exception as error:  # such as memory that ran out: others may be answered still
                choices.end("error", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
            self._busy = False

    def _write(self, job: "_Job", choice: int, choices: Choices) -> None:
        """One choice, to its end."""
        request, tokens = job.request, list(job.prompt)
        ends = request.ends(self._ends)
        drawer = Drawer(request, job.prompt, choice, self.tokenizer.vocab_size, ends)
        answer = Answer(self.tokenizer, request.stop, choice)
        most = min(request.sampling.max_new_tokens, self.context - job.prompt_tokens)
        cached = 0
        how: Finish | None = None
        error: str | None = None
        said = Piece(choice, "", prompt_logprobs=self._prompt_scores(job) if choice == 0 else ())
        while how is None:
            logits = self._model.logits(tokens, lambda: job.cancelled or self._closed)
            if logits is None:
                how = "cancelled"
                break
            if len(tokens) == job.prompt_tokens:
                cached = self._model.kept
            (drawn,) = draw(logits[None], [drawer])
            if drawn.error is not None:
                how, error = "error", drawn.error
                break
            tokens.append(drawn.token)
            if drawn.token not in ends:
                said = joined(said, answer.push(drawn.token, drawn.scored))
            how = _finish(drawn.token in ends or answer.stopped, len(tokens) - job.prompt_tokens == most)
            if how is None and (said.text or said.prompt_logprobs):
                choices.put(said)
                said = Piece(choice, "")
        usage = Usage(job.prompt_tokens, len(tokens) - job.prompt_tokens, cached)
        choices.put(joined(said, answer.flush())._replace(finish=how, usage=usage, error=error))

    def _prompt_scores(self, job: "_Job") -> tuple[LogProb, ...]:
        """Token by token: llama.cpp gives the logits of the last one only."""
        if not job.request.prompt_logprobs:
            return ()
        scores = [LogProb(job.prompt[0], self.tokenizer.token_bytes[job.prompt[0]], None)]
        for place in range(1, job.prompt_tokens):
            logits = self._model.logits(job.prompt[:place], lambda: job.cancelled or self._closed)
            if logits is None:
                return ()
            token = job.prompt[place]
            (scored,) = score(logits[None], [token], job.request.logprobs or 0)
            scores.append(named(self.tokenizer, token, scored))
        return tuple(scores)


class _Job:
    """A request, and its ticket."""

    begun: Future[None] | None = None

    def __init__(self, request: Request, prompt: list[int], deliver: Deliver):
        self.request, self.prompt, self.deliver = request, prompt, deliver
        self.prompt_tokens = len(prompt)
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def _finish(ended: bool, full: bool) -> Finish | None:
    return "stop" if ended else "length" if full else None
