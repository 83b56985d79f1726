"""Byte baselines against a naive implementation with dictionaries."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from mengya.data import corpus
from mengya.data.corpus import pair_counts
from mengya.errors import UserError
from mengya.evaluate.bits import ByteBaselines

TRAIN = ["春眠不觉晓，", "", "处处闻啼鸟。", "the cat sat on the mat", "a"]
HELD_OUT = ["夜来风雨声", "a cat\x00", "", "zebra"]


def naive(train: list[str], held_out: list[str]) -> tuple[float, float]:
    """(unigram, bigram) bits per byte, straight from the formulas."""
    single: Counter = Counter()
    after: dict = defaultdict(Counter)
    for text in train:
        previous = None
        for byte in text.encode():
            single[byte] += 1
            after[previous][byte] += 1
            previous = byte
    total = sum(single.values())
    bits, n = [0.0, 0.0], 0
    for text in held_out:
        previous = None
        for byte in text.encode():
            unigram = (single[byte] + 1) / (total + 256)
            seen, kinds = sum(after[previous].values()), len(after[previous])
            bigram = (after[previous][byte] + kinds * unigram) / (seen + kinds) if seen else unigram
            bits[0] -= math.log2(unigram)
            bits[1] -= math.log2(bigram)
            previous, n = byte, n + 1
    return bits[0] / n, bits[1] / n


@pytest.mark.parametrize("chunk", [1, 20, 1 << 22])
def test_against_dictionaries(monkeypatch, chunk: int) -> None:
    monkeypatch.setattr(corpus, "CHUNK_BYTES", chunk)
    fitted = ByteBaselines.fit(pair_counts(iter(TRAIN)))
    unigram, bigram = naive(TRAIN, HELD_OUT)
    assert fitted.bits_per_byte(HELD_OUT) == pytest.approx((unigram, bigram), rel=1e-12)


def test_against_dictionaries_on_random_text() -> None:
    rng = random.Random(1)
    documents = ["".join(rng.choices("ab春天 \n", (9, 3, 2, 2, 4, 1), k=rng.randrange(60))) for _ in range(80)]
    fitted = ByteBaselines.fit(pair_counts(documents[:60]))
    expected = naive(documents[:60], documents[60:])
    assert fitted.bits_per_byte(documents[60:]) == pytest.approx(expected, rel=1e-12)


def test_probabilities_sum_to_one_and_none_is_zero() -> None:
    fitted = ByteBaselines.fit(pair_counts(TRAIN))
    assert np.exp2(fitted.unigram).sum() == pytest.approx(1)
    assert np.exp2(fitted.bigram).sum(axis=1) == pytest.approx(np.ones(257))
    assert np.isfinite(fitted.bigram).all()


def test_bigram_beats_unigram_where_bytes_depend_on_each_other() -> None:
    fitted = ByteBaselines.fit(pair_counts(["abcd" * 500]))
    unigram, bigram = fitted.bits_per_byte(["abcd" * 9])
    assert unigram == pytest.approx(2, abs=0.2)
    assert bigram < 0.1


def test_no_text_is_the_users_fault() -> None:
    with pytest.raises(UserError, match="no training text"):
        ByteBaselines.fit(pair_counts(["", ""]))
    with pytest.raises(UserError, match="no held-out text"):
        ByteBaselines.fit(pair_counts(["a"])).bits_per_byte([])
