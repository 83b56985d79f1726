"""Documents, conversations and preference pairs -> token ids, and into shards."""

import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from mengya.data.conversations import Message, is_supervised
from mengya.data.documents import Document, in_batches
from mengya.data.fitting import Rendered, exchanges, fit_conversation, last_answer
from mengya.data.preferences import Preference
from mengya.data.readers import Rejected, Row
from mengya.data.shards import Shards, ShardWriter
from mengya.data.splits import Splitter, content_hash
from mengya.data.workers import ordered_map
from mengya.errors import UserError
from mengya.text.chat import Chat
from mengya.text.tokenizer import Tokenizer

T = TypeVar("T")
E = TypeVar("E")
_ROWS_AT_ONCE = 256


class RenderedPair(NamedTuple):
    prompt: int
    """Tokens before the completion, the same in both."""
    chosen: Rendered
    rejected: Rendered

    @property
    def size(self) -> int:
        return len(self.chosen.ids) + len(self.rejected.ids)

    def without_oldest(self, count: int) -> "RenderedPair":
        """Without the first `count` tokens of the prompt; one must stay, to predict the completion's first token."""
        assert 0 <= count < self.prompt
        sides = (Rendered(side.ids[count:], side.mask[count:]) for side in self[1:])
        return RenderedPair(self.prompt - count, *sides)


class Example(NamedTuple):
    """What comes from one row and stays in one split."""

    prompt: str
    """Its first question, which decides the split: no question stands on both sides."""
    documents: Sequence[Rendered]
    origin: tuple[str, str]
    cut: bool = False
    """Whether the row was too long, and was divided or lost a part of its prompt."""


def first_question(messages: Sequence[Message]) -> str:
    return next(message["content"] for message in messages if message["role"] == "user")


def render_pair(chat: Chat, pair: Preference) -> RenderedPair:
    """Only the two completions are supervised, not what the assistant said before."""
    prompt = len(chat.encode(pair.prompt, add_generation_prompt=True)[0])
    sides = []
    for completion in (pair.chosen, pair.rejected):
        ids, mask = last_answer(chat, [*pair.prompt, {"role": "assistant", "content": completion}])
        sides.append(Rendered(ids, [0] * prompt + mask[prompt:]))
    return RenderedPair(prompt, *sides)


def conversation_example(
    chat: Chat, row: Row[list[Message]], *, seq_len: int, supervise: Literal["all", "last"] = "all"
) -> Example:
    """A conversation in one row, or in several if it is longer (see `fit_conversation`). `supervise`: all of the
    assistant's turns, or the last alone. UserError if nothing is to be learnt from it."""
    messages = row.value
    if supervise == "last":
        last = messages[-1]
        messages = [m | {"supervised": m is last and is_supervised(m)} for m in messages]
    documents, cut = fit_conversation(chat, messages, seq_len)
    if not any(any(mask) for _, mask in documents):
        raise UserError("nothing in it is to be learnt: no turn is supervised")
    return Example(first_question(messages), documents, row.origin, cut)


def preference_example(chat: Chat, row: Row[Preference], *, seq_len: int) -> Example:
    """Chosen and rejected, which must fit into one row together. If they are longer, the prompt loses its oldest
    exchanges; then both prompts equally many of their oldest tokens. UserError if the completions alone do not fit."""
    pair = render_pair(chat, row.value)
    cut = pair.size > seq_len
    if cut:
        system, groups = exchanges(row.value.prompt)
        while pair.size > seq_len and len(groups) > 1:
            groups.pop(0)
            pair = render_pair(chat, row.value._replace(prompt=system + list(chain.from_iterable(groups))))
    surplus = max(0, -(-(pair.size - seq_len) // 2))
    if surplus >= pair.prompt:
        raise UserError(f"the two answers are too long for one row together; raise seq_len (now {seq_len})")
    return Example(first_question(row.value.prompt), pair.without_oldest(surplus)[1:], row.origin, cut)


def examples_of(
    function: Callable[[Row[T]], E], rows: Iterator[Row[T]], workers: int = min(8, os.cpu_count() or 1)
) -> Iterator[E | Rejected]:
    """`function` of each row, in order; a row for which it raises UserError is rejected. Unlike cleaning and plain text
    this is slow enough for several processes; more than 8 would wait for this one, which writes."""
    batches = iter(lambda: list(islice(rows, _ROWS_AT_ONCE)), [])
    return chain.from_iterable(ordered_map(partial(_each, function), batches, workers))


def _each(function: Callable[[Row[T]], E], rows: list[Row[T]]) -> list[E | Rejected]:
    found: list[E | Rejected] = []
    for row in rows:
        try:
            found.append(function(row))
        except UserError as error:  # such as a role that the template does not know
            found.append(Rejected(row.file, row.line, str(error), row.value, row.partly))
    return found


class Written(NamedTuple):
    """Numbers of examples."""

    train: int
    heldout: int
    cut: int


def write_examples(
    examples: Iterable[Example], vocab_size: int, train: Path, heldout: Path, fraction: float, nothing: str
) -> Written:
    """Masked shards of both splits; the question of an example decides its split (see `Splitter`).

    With `fraction` 0, or of a single question, nothing is held out. UserError with the message `nothing` if there is no
    example, and then no directory looks whole.
    """
    splitter, cut = Splitter(fraction), 0
    documents = array("I")  # of each example
    with _masked(train, vocab_size) as first, _masked(heldout, vocab_size) as second:
        for example in examples:
            held = splitter.add(content_hash(example.prompt))
            documents.append(len(example.documents))
            cut += example.cut
            for ids, mask in example.documents:
                (first, second)[held].append(ids, origin=example.origin, mask=mask)
        if not documents:
            raise UserError(nothing)
    held_out = splitter.corrected()
    if held_out is not None:
        full = heldout if splitter.heldout else train
        _divide_again(full, (train, heldout), zip(held_out, documents, strict=True), vocab_size)
    kept_back = splitter.heldout if held_out is None else sum(held_out)
    return Written(len(documents) - kept_back, kept_back, cut)


def _masked(directory: Path, vocab_size: int) -> ShardWriter:
    return ShardWriter(directory, vocab_size, {"mask": "uint8"})


def _divide_again(full: Path, splits: tuple[Path, Path], examples: Iterable[tuple[bool, int]], vocab_size: int) -> None:
    """Divide what came into one split alone. Of each example: whether it is held out, its number of documents."""
    everything = full.with_name(f"{full.name}-all")
    shutil.rmtree(everything, ignore_errors=True)
    full.rename(everything)
    source = Shards(everything)
    documents = zip(source.offsets[:-1], source.offsets[1:], source.origins(), strict=True)
    with _masked(splits[0], vocab_size) as first, _masked(splits[1], vocab_size) as second:
        for held, count in examples:
            for begin, end, origin in islice(documents, count):
                ids, mask = source.tokens[begin:end].tolist(), source.columns["mask"][begin:end].tolist()
                (first, second)[held].append(ids, origin=origin, mask=mask)
    shutil.rmtree(everything)


def write_documents(documents: Iterable[Document], tokenizer: Tokenizer, out: Path) -> dict:
    """Shards without a mask. Returns the counts."""

    with ShardWriter(out, tokenizer.vocab_size) as writer:
        for batch in in_batches(documents):  # the library encodes a batch on all cores
            encoded = tokenizer.encode_batch([document.text for document in batch])
            for document, ids in zip(batch, encoded, strict=True):
                writer.append(ids, len(document.text.encode()), (document.source, document.id))
    return writer.meta
