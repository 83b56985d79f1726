"""Bits per byte: how many bits a language model needs for one UTF-8 byte of text that it has never seen.

What is counted, here and in `baselines.py` alike: every byte of the text of every document, and nothing else. A
document is read as `<|endoftext|>` + tokens; the first token is predicted from `<|endoftext|>` alone, and the
`<|endoftext|>` that closes the document is *not* scored, because it stands for no byte of the text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import log

from mengya.errors import UserError
from mengya.evaluate.scoring import Row, log_probs
from mengya.model.language_model import LanguageModel
from mengya.text.tokenizer import Tokenizer

DOCUMENTS_AT_ONCE = 64  # tokenized and scored together, so that rows of like length share a batch


@dataclass(frozen=True)
class BitsPerByte:
    """Totals over the scored text. `value` is the metric: bits / bytes."""

    bits: float
    bytes: int
    tokens: int
    documents: int

    @property
    def value(self) -> float:
        return self.bits / self.bytes


def windows(length: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """Cut `length` ids into (start, first, last): feed ids[start:last-1], score ids[first:last].

    Each of the ids 1 .. length-1 is scored in exactly one window and a window feeds at most `context` ids. All scored
    tokens but those of the first window see more than `context - stride` ids before them.
    """
    assert 1 <= stride <= context, (stride, context)
    cuts = []
    first = 1
    while first < length:
        last = min(length, context + 1 if first == 1 else first + stride)
        cuts.append((max(0, last - 1 - context), first, last))
        first = last
    return cuts


def bits_per_byte(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Iterable[str],
    *,
    stride: int | None = None,
) -> BitsPerByte:
    """Sum of -log2 p over the tokens of `documents`, streaming, divided by their bytes. Empty documents do not count.

    Documents longer than `model.context` are cut by `windows`; `stride` defaults to three
    quarters of it. Runs under the caller's autocast. Raises UserError when there is no text.
    """
    context = model.context
    step = stride or context - context // 4
    nats, n_bytes, n_tokens, n_documents = 0.0, 0, 0, 0
    stream = filter(None, documents)
    while texts := list(islice(stream, DOCUMENTS_AT_ONCE)):
        encoded = tokenizer.encode_batch(texts)
        rows = [row for ids in encoded for row in _rows([tokenizer.eos_id, *ids], context, step)]
        nats -= sum(log_probs(model, rows))
        n_bytes += sum(len(text.encode()) for text in texts)
        n_tokens += sum(map(len, encoded))
        n_documents += len(texts)
    if n_bytes == 0:
        raise UserError("no held-out text to measure bits per byte on; hold out some documents")
    return BitsPerByte(nats / log(2), n_bytes, n_tokens, n_documents)


def _rows(ids: Sequence[int], context: int, stride: int) -> list[Row]:
    return [
        Row(ids[start:last], first - start, last - start) for start, first, last in windows(len(ids), context, stride)
    ]
