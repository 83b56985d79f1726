"""Generation with a key-value cache: many prompts at once, or one conversation as a stream of text."""

import time
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from mengya.errors import UserError
from mengya.infer.request import Sampling
from mengya.infer.sampling import make_generator, sample
from mengya.model.language_model import LanguageModel
from mengya.model.native.cache import KVCache
from mengya.text.chat import Chat, Message
from mengya.text.tokenizer import Tokenizer


def _logits(model: LanguageModel, input_ids: Tensor, cache: KVCache, last: Tensor | None = None) -> Tensor:
    """Feed (B, T) tokens; (B, V) float32 logits after column `last` (B,) of each row, or after the final one.

    Only those columns are projected: over a long prompt the logits would outweigh everything else in memory."""
    hidden = model.decode(input_ids=input_ids, cache=cache)
    return model.logits(
        hidden[:, -1] if last is None else hidden[torch.arange(len(hidden), device=hidden.device), last]
    )


def _check_finite(logits: Tensor) -> None:
    if not logits.isfinite().all():
        raise UserError("the model computes NaN or infinite logits: its training diverged; use an earlier checkpoint")


# ---- many prompts ----------------------------------------------------------------------------------------------------


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
    ended leave the batch."""
    assert all(len(prompt) > 0 for prompt in prompts), "a prompt needs at least one token"
    context = model.context
    generator = make_generator(sampling.seed, model.device)
    results: list[list[int]] = [[] for _ in prompts]
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    waiting = [i for i in longest_first if len(prompts[i]) < context]
    while waiting:
        columns = min(len(prompts[waiting[0]]) + sampling.max_new_tokens, context)
        rows = max(1, batch_tokens // columns)
        batch, waiting = waiting[:rows], waiting[rows:]
        _generate_batch(model, batch, prompts, results, sampling, stop_ids, generator)
    return results


def _generate_batch(
    model: LanguageModel,
    batch: list[int],
    prompts: Sequence[Sequence[int]],
    results: list[list[int]],
    sampling: Sampling,
    stop_ids: set[int],
    generator: torch.Generator,
) -> None:
    """Extend `results[i]` for every i of `batch`; row r of all tensors belongs to `batch[r]`."""
    device = model.device
    context = model.context
    limits = {i: min(sampling.max_new_tokens, context - len(prompts[i])) for i in batch}
    cache = model.new_cache(len(batch), max(len(prompts[i]) + limits[i] for i in batch))
    input_ids, lengths = _padded([prompts[i] for i in batch], device)
    seen = None
    if sampling.penalised:
        seen = torch.zeros(len(batch), model.vocab_size, dtype=torch.bool, device=device)
        seen.scatter_(1, input_ids, True)
    logits = _logits(model, input_ids, cache, lengths - 1)
    _check_finite(logits)
    cache.set_lengths(lengths)
    while True:
        tokens = sample(logits, sampling, generator, seen)
        ended = set()
        for row, (i, token) in enumerate(zip(batch, tokens.tolist(), strict=True)):
            if token not in stop_ids:
                results[i].append(token)
            if token in stop_ids or len(results[i]) == limits[i]:
                ended.add(row)
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        if ended:
            order = _drop_rows(cache, ended)
            if not order:
                return
            batch, tokens = [batch[row] for row in order], tokens[order]
            seen = None if seen is None else seen[order]
        logits = _logits(model, tokens[:, None], cache)


def _padded(rows: list[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, T) ids and (B,) lengths. Padding repeats a row's first token, which leaves its set of tokens unchanged."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in rows], device=device)
    return ids, torch.tensor([len(row) for row in rows], device=device)


def _drop_rows(cache: KVCache, ended: set[int]) -> list[int]:
    """Take the `ended` rows out of `cache`; the former places of those that stay, in their new order.

    The last rows move into the holes: one row's used columns are copied for each hole, not the whole cache."""
    total = len(cache.lengths)
    alive = total - len(ended)
    order = list(range(alive))
    movers = (row for row in range(alive, total) if row not in ended)
    for hole, mover in zip(sorted(row for row in ended if row < alive), movers, strict=True):
        order[hole] = mover
        for store in (cache.keys, cache.values):
            store[:, hole, :, : cache.longest] = store[:, mover, :, : cache.longest]
    if alive:
        cache.keys, cache.values = cache.keys[:, :alive], cache.values[:, :alive]
        cache.set_lengths(cache.lengths[order])
    return order


# ---- one conversation ------------------------------------------------------------------------------------------------


class TextStream:
    """Tokens in, text out: whole characters as soon as they are complete. Joined, they equal `decode` of all tokens.

    A byte-level token may end inside a character; decoding then ends in U+FFFD, which is held back."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._emitted = 0  # characters of the pending tokens that are out already

    def push(self, token: int) -> str:
        self._pending.append(token)
        text = self._tokenizer.decode(self._pending)
        if text.endswith("\ufffd"):
            piece, self._emitted = text[self._emitted : -1], len(text) - 1
            return piece
        return self._release(text)

    def flush(self) -> str:
        """What is left at the end, an unfinished character as U+FFFD."""
        return self._release(self._tokenizer.decode(self._pending))

    def _release(self, text: str) -> str:
        piece = text[self._emitted :]
        self._pending, self._emitted = [], 0
        return piece


class Session:
    """A conversation whose keys and values stay in memory between turns.

    Before each answer the cache holds exactly `chat.encode(messages + question, add_generation_prompt=True)`, of which
    only the part that the last turn did not leave there is computed. Interrupted turns, answers whose tokens are not
    those of their text, `clear` and dropped turns need no case of their own: the rendering decides."""

    def __init__(self, model: LanguageModel, chat: Chat, sampling: Sampling, system: str | None = None):
        self._model, self._chat, self._sampling = model, chat, sampling
        self._device = model.device
        self._generator = make_generator(sampling.seed, self._device)
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
        self._check_fits(self._preamble, "the system prompt")

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
        said = ""
        finished = False
        self._streaming = True
        self.tokens_per_second = 0.0
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
        """Tokens of the conversation and the question, after dropping as many of the oldest turns as it takes."""
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
        """Text of the answer to `ids`, never empty; keeps the time."""
        text = TextStream(self._chat.tokenizer)
        tokens = self._decode(ids)
        count, seconds = 0, 0.0
        while True:
            started = time.perf_counter()
            token = next(tokens, None)
            seconds += time.perf_counter() - started  # the reader's own time does not count
            if token is None:
                break
            count += 1
            self.tokens_per_second = count / seconds
            if piece := text.push(token):
                yield piece
        if piece := text.flush():
            yield piece

    def _decode(self, ids: list[int]) -> Iterator[int]:
        """Tokens that follow `ids`, up to a stop token, `max_new_tokens` or the end of the context."""
        logits = self._prefill(ids)
        _check_finite(logits)
        seen = None
        if self._sampling.penalised:
            seen = torch.zeros(1, self._model.vocab_size, dtype=torch.bool, device=self._device)
            seen[0, ids] = True
        stop_ids = self._chat.stop_ids
        room = min(self._sampling.max_new_tokens, self.context - len(ids))
        for left in range(room - 1, -1, -1):
            token = int(sample(logits, self._sampling, self._generator, seen))
            if token in stop_ids:
                return
            yield token
            if seen is not None:
                seen[0, token] = True
            if left:
                logits = self._feed([token])

    def _prefill(self, ids: list[int]) -> Tensor:
        """Logits (1, V) after `ids`, computing only what differs from the cache."""
        common = 0
        for cached, wanted in zip(self._cached, ids[:-1], strict=False):  # the last token's logits are always needed
            if cached != wanted:
                break
            common += 1
        del self._cached[common:]
        self._cache.set_lengths(torch.tensor([common]))
        return self._feed(ids[common:])

    @torch.inference_mode()
    def _feed(self, tokens: list[int]) -> Tensor:
        """Append `tokens` to the cache; (1, V) logits. Interrupted anywhere in here, `_cached` stays true."""
        self._grow(len(self._cached) + len(tokens))
        logits = _logits(self._model, torch.tensor([tokens], device=self._device), self._cache)
        self._cached += tokens
        return logits

    def _grow(self, columns: int) -> None:
        """Enlarge the cache to at least `columns`: a long context is paid for only when it is used."""
        old = self._cache
        if columns <= old.max_len:
            return
        new = self._model.new_cache(1, min(self.context, max(columns, 2 * old.max_len)))
        used = len(self._cached)
        new.keys[..., :used, :] = old.keys[..., :used, :]
        new.values[..., :used, :] = old.values[..., :used, :]
        new.set_lengths(torch.tensor([used]))
        self._cache = new


def _valid(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates (undecodable input) replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
