"""Generation with a key-value cache: many prompts at once, or one conversation as a stream of text."""

import time
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from mengya.errors import UserError
from mengya.infer.request import Request, Sampling
from mengya.infer.sampling import Drawer, draw
from mengya.infer.stream import TextStream
from mengya.model.language_model import Cache, LanguageModel
from mengya.text.chat import Chat, Message


def _logits(model: LanguageModel, input_ids: Tensor, cache: Cache, last: Tensor | None = None) -> Tensor:
    """Feed (B, T) tokens; (B, V) float32 logits after column `last` (B,) of each row, or after the final one.

    Only those columns are projected: over a long prompt the logits would outweigh everything else in memory.
    UserError if they are not finite."""
    hidden = model.decode(input_ids=input_ids, cache=cache)
    hidden = hidden[:, -1] if last is None else hidden[torch.arange(len(hidden), device=hidden.device), last]
    logits = model.logits(hidden)
    if not logits.isfinite().all():
        raise UserError("the model computes NaN or infinite logits: its training diverged; use an earlier checkpoint")
    return logits


def _drawer(model: LanguageModel, prompt: Sequence[int], sampling: Sampling, stop_ids: set[int]) -> Drawer:
    return Drawer(Request(prompt=prompt, sampling=sampling), prompt, 0, model.vocab_size, frozenset(stop_ids))


def sample(logits: Tensor, drawers: Sequence[Drawer]) -> Tensor:
    """(B,) int64 next tokens."""
    return torch.tensor([drawn.token for drawn in draw(logits, drawers)], device=logits.device)


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: set[int],
    batch_tokens: int = 16_384,
) -> list[list[int]]:
    """The completion of each prompt, in order, without the stop token that ended it.

    A completion ends at a stop token, after `max_new_tokens`, or where prompt and completion together fill
    the model's context; a prompt that fills it alone gets an empty one. Prompts of similar length run together,
    as many as fit into a cache of `batch_tokens` (memory: that many keys and values in every layer); rows that have
    ended leave the batch. With a seed, a prompt gets the same completion beside any others (see `draws`)."""
    assert all(len(prompt) > 0 for prompt in prompts), "a prompt needs at least one token"
    results: list[list[int]] = [[] for _ in prompts]
    waiting = [i for i, prompt in enumerate(prompts) if len(prompt) < model.context]
    waiting.sort(key=lambda i: -len(prompts[i]))
    while waiting:
        columns = min(len(prompts[waiting[0]]) + sampling.max_new_tokens, model.context)
        rows = max(1, batch_tokens // columns)
        batch, waiting = waiting[:rows], waiting[rows:]
        completions = _generate_batch(model, [prompts[i] for i in batch], sampling, stop_ids)
        for i, completion in zip(batch, completions, strict=True):
            results[i] = completion
    return results


def _generate_batch(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: set[int],
) -> list[list[int]]:
    """The completions of all prompts, in one cache."""
    completions: list[list[int]] = [[] for _ in prompts]
    limits = [min(sampling.max_new_tokens, model.context - len(prompt)) for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    longest = max(len(prompt) for prompt in prompts)
    padded = [[*prompt, *[prompt[0]] * (longest - len(prompt))] for prompt in prompts]
    input_ids = torch.tensor(padded, device=model.device)
    cache = model.new_cache(len(prompts), min(longest + sampling.max_new_tokens, model.context))
    logits = _logits(model, input_ids, cache, lengths - 1)
    cache.set_lengths(lengths)
    rows = list(range(len(prompts)))  # the prompt that each row of the tensors belongs to
    drawers = [_drawer(model, prompt, sampling, stop_ids) for prompt in prompts]
    for _ in range(sampling.max_new_tokens):
        tokens = sample(logits, drawers)
        ended = set()
        for row, (i, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if token not in stop_ids:
                completions[i].append(token)
            if token in stop_ids or len(completions[i]) == limits[i]:
                ended.add(row)
        if len(ended) == len(rows):
            break
        if ended:
            order = cache.drop_rows(ended)
            rows, drawers, tokens = [rows[row] for row in order], [drawers[row] for row in order], tokens[order]
        logits = _logits(model, tokens[:, None], cache)
    return completions


class Session:
    """A conversation whose keys and values stay in memory between turns.

    Before each answer the cache holds exactly `chat.encode(messages + question, add_generation_prompt=True)`. Only the
    part that the last turn did not leave there is computed. So interrupted turns, answers whose tokens are not those
    of their text, `clear` and dropped turns are not special cases."""

    def __init__(self, model: LanguageModel, chat: Chat, sampling: Sampling, system: str | None = None):
        self._model, self._chat, self._sampling = model, chat, sampling
        self.context: int = model.context
        self.reserve: int = min(sampling.max_new_tokens, max(1, self.context // 4))
        """Tokens of the context that a question may not take, so that there is room for an answer."""
        self._preamble: list[Message] = [{"role": "system", "content": _valid(system)}] if system else []
        self.messages: list[Message] = list(self._preamble)
        """The conversation so far, as `Chat.encode` takes it."""
        self._cached: list[int] = []  # columns of the cache that are certainly right
        self._cache = model.new_cache(1, min(self.context, 512))
        self._streaming = False
        self.tokens_per_second = 0.0
        """Of the last turn: answer tokens by the time to compute them, the question's prefill included."""
        if self._preamble:  # many templates take no system prompt without a question
            self._check_fits([*self._preamble, {"role": "user", "content": ""}], "the system prompt")

    def clear(self) -> None:
        """Forget the conversation, not the system prompt."""
        self.messages = list(self._preamble)

    def stream(self, user_text: str) -> Generator[str, None, None]:
        """The answer to `user_text` in pieces of text. UserError, and no change, if it is too long for the context.

        When the context is full, the oldest turns are forgotten. Closing the iterator (or KeyboardInterrupt) keeps
        the question with what was answered so far; if that is nothing, the question is forgotten too."""
        assert not self._streaming, "finish or close the previous answer first"
        question = {"role": "user", "content": _valid(user_text)}
        ids = self._render(question)
        said, finished = "", False
        self._streaming, self.tokens_per_second = True, 0.0
        try:
            for piece in self._pieces(ids):
                said += piece
                yield piece
            finished = True
        finally:
            self._streaming = False
            if said or finished:
                self.messages += [question, {"role": "assistant", "content": said}]

    def _render(self, question: Message) -> list[int]:
        """Tokens of the conversation and the question; drops the oldest turns until they fit into the context."""
        self._check_fits([*self._preamble, question], "the message")
        while True:
            ids, _ = self._chat.encode([*self.messages, question], add_generation_prompt=True)
            if len(ids) + self.reserve <= self.context:
                return ids
            start = len(self._preamble)
            del self.messages[start : start + 2]  # a question and its answer

    def _check_fits(self, messages: list[Message], what: str) -> None:
        used = len(self._chat.encode(messages, add_generation_prompt=True)[0])
        room = self.context - self.reserve
        if used > room:
            raise UserError(
                f"{what} takes {used} tokens, but this model has room for {room} ({self.context} of context, "
                f"{self.reserve} of them for the answer); shorten it"
            )

    def _pieces(self, ids: list[int]) -> Iterator[str]:
        """Text of the answer to `ids`, never empty, up to a stop token, `max_new_tokens` or the end of the context."""
        text = TextStream(self._chat.tokenizer)
        drawer = _drawer(self._model, ids, self._sampling, self._chat.stop_ids)
        room = min(self._sampling.max_new_tokens, self.context - len(ids))
        seconds, started = 0.0, time.perf_counter()
        common = 0  # tokens that the cache already has; the last one is fed anyway, because its logits are needed
        for cached, wanted in zip(self._cached, ids[:-1], strict=False):
            if cached != wanted:
                break
            common += 1
        del self._cached[common:]
        self._cache.set_lengths(torch.tensor([common]))
        logits = self._feed(ids[common:])
        for count in range(1, room + 1):
            token = int(sample(logits, [drawer]))
            if token in self._chat.stop_ids:
                break
            seconds += time.perf_counter() - started
            self.tokens_per_second = count / seconds
            if piece := text.push(token):
                yield piece
            started = time.perf_counter()  # the reader's own time does not count
            if count < room:
                logits = self._feed([token])
        if piece := text.flush():
            yield piece

    @torch.inference_mode()
    def _feed(self, tokens: list[int]) -> Tensor:
        """Append `tokens` to the cache; (1, V) logits. Interrupted anywhere in here, `_cached` stays true."""
        old = self._cache
        columns = len(self._cached) + len(tokens)
        if columns > old.max_len:  # so a long context costs memory only when it is used
            self._cache = old.with_room(min(self.context, max(columns, 2 * old.max_len)))
        logits = _logits(self._model, torch.tensor([tokens], device=self._model.device), self._cache)
        self._cached += tokens
        return logits


def _valid(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates (undecodable input) replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
