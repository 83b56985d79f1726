"""Documents, conversations and preference pairs -> token ids, and into shards."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from mengya.data.conversations import Message
from mengya.data.documents import Document, in_batches
from mengya.data.preferences import Preference
from mengya.data.readers import Row
from mengya.data.shards import ShardWriter
from mengya.data.splits import content_hash, is_heldout
from mengya.data.workers import ordered_map
from mengya.errors import UserError
from mengya.text.chat import Chat
from mengya.text.tokenizer import Tokenizer

T = TypeVar("T")
_ROWS_AT_ONCE = 256


class Rendered(NamedTuple):
    ids: list[int]
    mask: list[int]
    """1 where a token is supervised."""


class RenderedPair(NamedTuple):
    prompt: int
    """Tokens before the completion, the same in both."""
    chosen: Rendered
    rejected: Rendered

    def without_oldest(self, count: int) -> "RenderedPair":
        """Without the first `count` tokens of the prompt; one must stay, which predicts the completion's first."""
        assert 0 <= count < self.prompt
        sides = (Rendered(side.ids[count:], side.mask[count:]) for side in self[1:])
        return RenderedPair(self.prompt - count, *sides)


class Example(NamedTuple):
    """What stays together in one split and one row."""

    content: str
    """Decides the split."""
    documents: Sequence[Rendered]
    origin: tuple[str, str]


def render(chat: Chat, messages: Sequence[Message], add_generation_prompt: bool = False) -> Rendered:
    """What the assistant says, and the end of its turns, is supervised."""
    return Rendered(*chat.encode(messages, add_generation_prompt=add_generation_prompt))


def render_pair(chat: Chat, pair: Preference) -> RenderedPair:
    """Only the two completions are supervised, not what the assistant said before."""
    prompt = len(render(chat, pair.prompt, add_generation_prompt=True).ids)
    sides = []
    for completion in (pair.chosen, pair.rejected):
        ids, mask = render(chat, [*pair.prompt, {"role": "assistant", "content": completion}])
        sides.append(Rendered(ids, [0] * prompt + mask[prompt:]))
    return RenderedPair(prompt, *sides)


def conversation_example(chat: Chat, row: Row[list[Message]]) -> Example:
    return Example(json.dumps(row.value, ensure_ascii=False), [render(chat, row.value)], row.origin)


def preference_example(chat: Chat, row: Row[Preference], *, seq_len: int) -> Example | None:
    """Chosen and rejected, which must fit into one row together: of a longer pair the prompt loses its oldest tokens,
    equally on both sides. None if the completions alone do not fit."""
    pair = render_pair(chat, row.value)
    surplus = len(pair.chosen.ids) + len(pair.rejected.ids) - seq_len
    cut = max(0, -(-surplus // 2))
    if cut >= pair.prompt:
        return None
    return Example(json.dumps(row.value, ensure_ascii=False), pair.without_oldest(cut)[1:], row.origin)


def examples_of(
    function: Callable[[Row[T]], Example | None], rows: Iterator[Row[T]], workers: int = min(8, os.cpu_count() or 1)
) -> Iterator[Example | None]:
    """`function` of each row, in order. Unlike cleaning and plain text this is slow enough for several processes; more
    than 8 would wait for this one, which writes."""
    batches = iter(lambda: list(islice(rows, _ROWS_AT_ONCE)), [])
    for batch in ordered_map(partial(_each, function), batches, workers):
        yield from batch


def _each(function: Callable[[Row[T]], Example | None], rows: list[Row[T]]) -> list[Example | None]:
    return [function(row) for row in rows]


class Written(NamedTuple):
    train: int
    """Examples."""
    heldout: int
    too_long: int


def write_examples(
    examples: Iterable[Example | None], vocab_size: int, train: Path, heldout: Path, fraction: float, nothing: str
) -> Written:
    """Masked shards of both splits; which one an example is in depends on its content. None: it is too long.

    UserError if a split is empty (`nothing`, if both are), and then no directory looks whole.
    """
    counts = [0, 0, 0]
    columns = {"mask": "uint8"}
    writers = ShardWriter(train, vocab_size, columns), ShardWriter(heldout, vocab_size, columns)
    with writers[0], writers[1]:
        for example in examples:
            if example is None:
                counts[2] += 1
                continue
            split = is_heldout(content_hash(example.content), fraction)
            counts[split] += 1
            for ids, mask in example.documents:
                writers[split].append(ids, origin=example.origin, mask=mask)
        written = Written(*counts)
        if not written.train and not written.heldout:
            raise UserError(nothing)
        if not written.train:
            raise UserError(f"all {written.heldout} examples were held out; lower heldout (now {fraction}) or add data")
        if not written.heldout:
            raise UserError(
                f"none of {written.train} examples was held out; raise heldout (now {fraction}) or add data"
            )
    return written


def write_documents(documents: Iterable[Document], tokenizer: Tokenizer, out: Path) -> dict:
    """Shards without a mask. Returns the counts."""

    def encode(batch: list[Document]) -> list[tuple[Document, list[int]]]:
        return list(zip(batch, tokenizer.encode_batch([document.text for document in batch]), strict=True))

    with ShardWriter(out, tokenizer.vocab_size) as writer:
        # One process: the library encodes a batch on all cores.
        for encoded in ordered_map(encode, in_batches(documents), workers=1):
            for document, ids in encoded:
                writer.append(ids, len(document.text.encode()), (document.source, document.id))
    return writer.meta
