"""Byte-level unigram and bigram models: what bits per byte a language model has to beat to have learned anything.

Both are fit on the training bytes and predict every byte of the held-out text, nothing else; the bigram predicts the
first byte of a document from a document-start symbol, as the language model does from `<|endoftext|>`. No held-out byte
has probability zero:

- unigram: additive smoothing, p(b) = (n(b) + 1) / (N + 256);
- bigram: Witten-Bell interpolation with that unigram, p(b | a) = (n(a, b) + t(a) p(b)) / (n(a) + t(a)), where t(a) is
  the number of distinct bytes seen after a (I. H. Witten and T. C. Bell, IEEE Trans. Inf. Theory 37, 1991; method C).
  It has no parameter to tune. A byte that never preceded another one falls back to the unigram.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mengya.data.corpus import pair_counts
from mengya.errors import UserError


@dataclass(frozen=True)
class ByteBaselines:
    """log2-probabilities: `unigram` (256,), `bigram` (257, 256) by preceding byte, 256 = document start."""

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

    def unigram_bits_per_byte(self, documents: Iterable[str]) -> float:
        """Mean -log2 p(b) over the bytes of `documents`."""
        return _mean_bits(pair_counts(documents), self.unigram)

    def bigram_bits_per_byte(self, documents: Iterable[str]) -> float:
        """Mean -log2 p(b | a) over the bytes of `documents`."""
        return _mean_bits(pair_counts(documents), self.bigram)


def _mean_bits(counts: NDArray[np.int64], log2_probs: NDArray[np.float64]) -> float:
    total = int(counts.sum())
    if total == 0:
        raise UserError("no held-out text to measure the byte baselines on; hold out some documents")
    return float(-(counts * log2_probs).sum() / total)
