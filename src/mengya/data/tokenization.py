"""Text, conversations and preference pairs -> token shards, streaming."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from mengya.data.cleaning import content_hash, is_heldout
from mengya.data.preferences import Preference
from mengya.data.shards import ShardWriter
from mengya.errors import UserError
from mengya.text.chat import Chat
from mengya.text.tokenizer import Tokenizer

_AT_ONCE_CHARACTERS = 2_000_000


def read_texts(path: Path) -> Iterator[str]:
    """The `text` of each line of a corpus file that the corpus stage wrote."""
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)["text"]


def _in_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _AT_ONCE_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_text_shards(texts: Iterable[str], tokenizer: Tokenizer, out: Path) -> dict:
    """One document a text. Returns the counts."""
    with ShardWriter(out, tokenizer.vocab_size) as writer:
        for batch in _in_batches(texts):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                writer.append(ids, text_bytes=len(text.encode()))
    return writer.meta


def _check_split(train: ShardWriter, heldout: ShardWriter, fraction: float, nothing: str) -> None:
    """UserError if a split is empty; raised before the writers close, so that nothing looks whole."""
    used, kept = train.meta["documents"], heldout.meta["documents"]
    if not used and not kept:
        raise UserError(nothing)
    if not used:
        raise UserError(f"all {kept} documents were held out; lower heldout (now {fraction}) or add data")
    if not kept:
        raise UserError(f"none of {used} documents was held out; raise heldout (now {fraction}) or add data")


def write_conversation_shards(
    conversations: Iterable[list[dict]], chat: Chat, train: Path, heldout: Path, fraction: float
) -> tuple[dict, dict]:
    """Split by content, supervise the assistant's turns. Returns the counts of both splits."""
    writers = (
        ShardWriter(train, chat.tokenizer.vocab_size, masked=True),
        ShardWriter(heldout, chat.tokenizer.vocab_size, masked=True),
    )
    with writers[0], writers[1]:
        for messages in conversations:
            text = json.dumps(messages, ensure_ascii=False)
            ids, mask = chat.encode(messages)
            writers[is_heldout(content_hash(text), fraction)].append(ids, mask, len(text.encode()))
        _check_split(*writers, fraction, "no conversation was found; check the input and its quarantine.jsonl")
    return writers[0].meta, writers[1].meta


def write_preference_shards(
    pairs: Iterable[Preference], chat: Chat, train: Path, heldout: Path, fraction: float, seq_len: int
) -> tuple[dict, dict, int]:
    """Chosen and rejected as neighbouring documents. Returns the counts of both splits and of pairs left out.

    A pair must fit into one row together; of a longer one the prompt loses its oldest tokens, equally on both sides,
    and it is left out, and counted, only when the completions alone do not fit.
    """
    writers = (
        ShardWriter(train, chat.tokenizer.vocab_size, masked=True),
        ShardWriter(heldout, chat.tokenizer.vocab_size, masked=True),
    )
    too_long = 0
    with writers[0], writers[1]:
        for pair in pairs:
            sides = [
                chat.encode([*pair.prompt, {"role": "assistant", "content": text}])
                for text in (pair.chosen, pair.rejected)
            ]
            prompt = len(chat.encode(pair.prompt, add_generation_prompt=True)[0])
            surplus = sum(len(ids) for ids, _ in sides) - seq_len
            cut = max(0, -(-surplus // 2))
            if cut >= prompt:
                too_long += 1
                continue
            split = is_heldout(content_hash(json.dumps(pair, ensure_ascii=False)), fraction)
            for ids, mask in sides:
                only_completion = [m if i >= prompt else 0 for i, m in enumerate(mask)]
                writers[split].append(ids[cut:], only_completion[cut:])
        nothing = f"no preference pair fits into seq_len={seq_len}; raise dpo.seq_len or check quarantine.jsonl"
        _check_split(*writers, fraction, nothing)
    return writers[0].meta, writers[1].meta, too_long


def sample_texts(path: Path, most_bytes: int) -> Iterator[str]:
    """Documents spread evenly over a corpus file, about `most_bytes` in all."""
    size = path.stat().st_size
    share = min(1.0, most_bytes / max(size, 1))
    for text in read_texts(path):
        # The second half of the hash: the first decided which split the document is in, so that within one split it is
        # anything but uniform.
        if is_heldout(content_hash(text)[8:], share):
            yield text


def first_texts(path: Path, count: int) -> list[str]:
    return list(islice(read_texts(path), count))
