"""Documents, conversations and preference pairs -> token ids, and into shards."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from mengya.data.conversations import Message
from mengya.data.documents import Document, content_hash, in_batches, is_heldout
from mengya.data.preferences import Preference
from mengya.data.readers import Rejected, Row
from mengya.data.shards import ShardWriter
from mengya.data.workers import ordered_map
from mengya.errors import UserError
from mengya.text.chat import Chat
from mengya.text.tokenizer import Tokenizer

T = TypeVar("T")
_ROWS_AT_ONCE = 256


class Rendered(NamedTuple):
    ids: list[int]
    mask: list[int]
    """1 where a token is supervised: in what the assistant says, and at the end of its turns."""


class RenderedPair(NamedTuple):
    prompt: int
    """Tokens before the completion, the same in both."""
    chosen: Rendered
    rejected: Rendered

    def without_oldest(self, count: int) -> "RenderedPair":
        """Without the first `count` tokens of the prompt; one must stay, to predict the completion's first token."""
        assert 0 <= count < self.prompt
        sides = (Rendered(side.ids[count:], side.mask[count:]) for side in self[1:])
        return RenderedPair(self.prompt - count, *sides)


class Example(NamedTuple):
    """What stays together in one split and one row."""

    content: str
    """Decides the split."""
    documents: Sequence[Rendered]
    origin: tuple[str, str]


def render_pair(chat: Chat, pair: Preference) -> RenderedPair:
    """Only the two completions are supervised, not what the assistant said before."""
    prompt = len(chat.encode(pair.prompt, add_generation_prompt=True)[0])
    sides = []
    for completion in (pair.chosen, pair.rejected):
        ids, mask = chat.encode([*pair.prompt, {"role": "assistant", "content": completion}])
        sides.append(Rendered(ids, [0] * prompt + mask[prompt:]))
    return RenderedPair(prompt, *sides)


def conversation_example(chat: Chat, row: Row[list[Message]]) -> Example:
    return Example(json.dumps(row.value, ensure_ascii=False), [Rendered(*chat.encode(row.value))], row.origin)


def preference_example(chat: Chat, row: Row[Preference], *, seq_len: int) -> Example:
    """Chosen and rejected, which must fit into one row together: if they are longer, both prompts lose equally many of
    their oldest tokens. UserError if the completions alone do not fit."""
    pair = render_pair(chat, row.value)
    surplus = len(pair.chosen.ids) + len(pair.rejected.ids) - seq_len
    cut = max(0, -(-surplus // 2))
    if cut >= pair.prompt:
        raise UserError(f"the two answers are too long for one row together; raise seq_len (now {seq_len})")
    return Example(json.dumps(row.value, ensure_ascii=False), pair.without_oldest(cut)[1:], row.origin)


def examples_of(
    function: Callable[[Row[T]], Example], rows: Iterator[Row[T]], workers: int = min(8, os.cpu_count() or 1)
) -> Iterator[Example | Rejected]:
    """`function` of each row, in order; a row for which it raises UserError is rejected. Unlike cleaning and plain text
    this is slow enough for several processes; more than 8 would wait for this one, which writes."""
    batches = iter(lambda: list(islice(rows, _ROWS_AT_ONCE)), [])
    return chain.from_iterable(ordered_map(partial(_each, function), batches, workers))


def _each(function: Callable[[Row[T]], Example], rows: list[Row[T]]) -> list[Example | Rejected]:
    found: list[Example | Rejected] = []
    for row in rows:
        try:
            found.append(function(row))
        except UserError as error:  # such as a role that the template does not know
            found.append(Rejected(row.file, row.line, str(error), row.value))
    return found


def write_examples(
    examples: Iterable[Example], vocab_size: int, train: Path, heldout: Path, fraction: float, nothing: str
) -> tuple[int, int]:
    """Masked shards of both splits; the content of an example decides its split. Returns their numbers of examples.

    UserError if a split is empty (with the message `nothing`, if both are), and then no directory looks whole.
    """
    counts = [0, 0]
    columns = {"mask": "uint8"}
    with ShardWriter(train, vocab_size, columns) as first, ShardWriter(heldout, vocab_size, columns) as second:
        for example in examples:
            split = is_heldout(content_hash(example.content), fraction)
            counts[split] += 1
            for ids, mask in example.documents:
                (first, second)[split].append(ids, origin=example.origin, mask=mask)
        to_train_on, held_out = counts
        advice = f"heldout (now {fraction}) or add data"
        if not to_train_on and not held_out:
            raise UserError(nothing)
        if not to_train_on:
            raise UserError(f"all {held_out} examples were held out; lower {advice}")
        if not held_out:
            raise UserError(f"none of {to_train_on} examples was held out; raise {advice}")
    return to_train_on, held_out


def write_documents(documents: Iterable[Document], tokenizer: Tokenizer, out: Path) -> dict:
    """Shards without a mask. Returns the counts."""

    with ShardWriter(out, tokenizer.vocab_size) as writer:
        for batch in in_batches(documents):  # the library encodes a batch on all cores
            encoded = tokenizer.encode_batch([document.text for document in batch])
            for document, ids in zip(batch, encoded, strict=True):
                writer.append(ids, len(document.text.encode()), (document.source, document.id))
    return writer.meta
