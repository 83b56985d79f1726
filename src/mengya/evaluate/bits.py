"""Bits per byte: how many bits a language model needs for one UTF-8 byte of text that it has never seen.

What is counted, for the byte baselines too: every byte of the text of every document, and nothing else. A
document is read as `<|endoftext|>` + tokens; the first token is predicted from `<|endoftext|>` alone, and the
`<|endoftext|>` that closes the document is *not* scored, because it stands for no byte of the text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from math import log

import numpy as np
from numpy.typing import NDArray

from mengya.data.corpus import pair_counts
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
    model: LanguageModel, tokenizer: Tokenizer, documents: Iterable[str], *, stride: int | None = None
) -> BitsPerByte:
    """Sum of -log2 p over the tokens of `documents`, streaming, divided by their bytes. Empty documents do not count.

    Documents longer than `model.context` are cut by `windows`; `stride` defaults to three quarters of it. Runs under
    the caller's autocast. UserError when there is no text.
    """
    stride = stride or model.context - model.context // 4
    nats, n_bytes = 0.0, 0
    stream = filter(None, documents)
    while texts := list(islice(stream, DOCUMENTS_AT_ONCE)):
        rows = []
        for encoded in tokenizer.encode_batch(texts):
            ids = [tokenizer.eos_id, *encoded]
            for start, first, last in windows(len(ids), model.context, stride):
                rows.append(Row(ids[start:last], first - start, last - start))
        nats -= sum(log_probs(model, rows))
        n_bytes += sum(len(text.encode()) for text in texts)
    if n_bytes == 0:
        raise UserError("no held-out text to measure bits per byte on; hold out some documents")
    return BitsPerByte(nats / log(2), n_bytes)


@dataclass(frozen=True)
class ByteBaselines:
    """Byte-level models of the training text: what a language model has to beat to have learned anything.

    log2-probabilities: `unigram` (256,), `bigram` (257, 256) by preceding byte, 256 = document start, from which the
    bigram predicts the first byte, as the language model does from `<|endoftext|>`. No byte has probability zero:

    - unigram: additive smoothing, p(b) = (n(b) + 1) / (N + 256);
    - bigram: Witten-Bell interpolation with that unigram, p(b | a) = (n(a, b) + t(a) p(b)) / (n(a) + t(a)), where t(a)
      is the number of distinct bytes seen after a (I. H. Witten and T. C. Bell, IEEE Trans. Inf. Theory 37, 1991;
      method C). It has no parameter to tune. After a byte that never preceded another one it is the unigram.
    """

    unigram: NDArray[np.float64]
    bigram: NDArray[np.float64]

    @classmethod
    def fit(cls, pairs: NDArray[np.int64]) -> "ByteBaselines":
        """From the `BytePairs.counts` of the training documents. UserError when there are none."""
        total = int(pairs.sum())
        if total == 0:
            raise UserError("the byte baselines were given no training text; give them the documents of the corpus")
        unigram = (pairs.sum(axis=0) + 1) / (total + 256)
        distinct = np.count_nonzero(pairs, axis=1)[:, None]
        seen = pairs.sum(axis=1, keepdims=True)
        smoothed = (pairs + distinct * unigram) / np.maximum(seen + distinct, 1)
        bigram = np.where(seen > 0, smoothed, unigram)
        return cls(np.log2(unigram), np.log2(bigram))

    def bits_per_byte(self, documents: Iterable[str]) -> tuple[float, float]:
        """Mean of -log2 p(b) and of -log2 p(b | a) over the bytes of `documents`. UserError when there are none."""
        counts = pair_counts(documents)
        total = int(counts.sum())
        if total == 0:
            raise UserError("no held-out text to measure the byte baselines on; hold out some documents")
        unigram, bigram = (float(-(counts * table).sum() / total) for table in (self.unigram, self.bigram))
        return unigram, bigram
