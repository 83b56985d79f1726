"""Our engine as a backend: a thread of its own computes step after step while there is something to do."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mengya.errors import UserError
from mengya.infer.backends import Deliver, Load
from mengya.infer.backends.prompts import token_ids
from mengya.infer.engine import RUNNING, Engine, Job
from mengya.infer.grammar import Grammars
from mengya.infer.request import GrammarMaker, Prompt, Request, TooLong
from mengya.metrics import format_count
from mengya.model.language_model import LanguageModel
from mengya.model.precision import Weights
from mengya.text.chat import Chat
from mengya.text.tokenizer import Tokenizer


class Local:
    """A native model, or one of the transformers library."""

    def __init__(
        self,
        name: str,
        model: LanguageModel,
        tokenizer: Tokenizer,
        chat: Chat | None,
        *,
        running: int = RUNNING,
        tokens: int | None = None,
        weights: Weights = "exact",
    ):
        """Without a `chat`, only texts and tokens are continued. Others: see `Engine`."""
        self.name, self.context = name, model.context
        size = format_count(model.all_parameters())
        self.about = f"{size} 参数 parameters · 上下文 context {model.context}"
        self.tokenizer, self.chat = tokenizer, chat
        self._model = model
        stop_ids = chat.stop_ids if chat else {tokenizer.eos_id}
        self._engine = Engine(model, tokenizer, stop_ids, running=running, tokens=tokens, weights=weights)
        self._work = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"engine of {name}", daemon=True)
        self._thread.start()

    def submit(self, request: Request, deliver: Deliver) -> "Ticket":
        prompt = self.encode(request.prompt)
        with self._work:
            if self._closed:
                raise UserError("the model is being closed; ask again later")
            if not self._thread.is_alive():
                raise UserError("the engine has stopped working; start it again")
            job = self._engine.add(request, prompt, deliver)
            self._work.notify()
        return Ticket(job)

    def encode(self, prompt: Prompt) -> list[int]:
        return token_ids(prompt, self.tokenizer, self.chat, self.name)

    @torch.inference_mode()
    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        found = []
        for prompt in prompts:
            if not prompt:
                raise UserError("an empty text has no embedding; give at least one character")
            if len(prompt) > self.context:
                raise TooLong(
                    f"the text has {len(prompt)} tokens, the context {self.context}; shorten it",
                    len(prompt),
                    self.context,
                )
            hidden, _ = self._model.hidden(input_ids=torch.tensor([list(prompt)], device=self._model.device))
            found.append(hidden[0].float().mean(0).cpu())
        return torch.stack(found)

    def grammar(self, schema: Mapping[str, Any]) -> GrammarMaker:
        return self._grammars.json_schema(schema)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.chat.stop_ids if self.chat else {self.tokenizer.eos_id})

    def load(self) -> Load:
        engine = self._engine
        if not self._thread.is_alive():
            return Load(0, 0, engine.pool.blocks, engine.pool.free)
        return Load(engine.running, engine.waiting, engine.pool.blocks, engine.pool.free)

    def close(self) -> None:
        with self._work:
            self._closed = True
            self._work.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._work:
                while not (self._closed or self._engine.busy):
                    self._work.wait()
                if self._closed:
                    break
            try:
                self._engine.step()
            except Exception as error:  # our fault; those who ask next are still to be answered
                self._engine.end_all("error", f"{type(error).__name__}: {error}")
        self._engine.end_all()


class Ticket:
    begun: Future[None] | None = None

    def __init__(self, job: Job):
        self._job = job
        self.prompt_tokens = job.prompt_tokens

    def cancel(self) -> None:
        self._job.cancelled = True
