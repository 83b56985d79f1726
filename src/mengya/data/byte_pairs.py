"""How often each byte follows each other byte: what the byte baselines of the evaluation are made from."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

START = 256  # the context of the first byte of a document
CHUNK_BYTES = 1 << 18  # counting is three times as fast while it stays in a cache


class BytePairs:
    """Counts document by document; whole documents are gathered and counted together."""

    def __init__(self) -> None:
        self._counts = np.zeros((START + 1) ** 2, dtype=np.int64)
        self._documents: list[bytes] = []
        self._size = 0

    def add(self, document: bytes) -> None:
        self._documents.append(document)
        self._size += len(document)
        if self._size >= CHUNK_BYTES:
            self._count()

    def counts(self) -> NDArray[np.int64]:
        """(257, 256): [a, b] = how often byte b follows byte a; row 256 counts the first bytes of documents."""
        self._count()
        return self._counts.reshape(START + 1, START + 1)[:, :START].copy()

    def _count(self) -> None:
        data = np.frombuffer(b"".join(self._documents), dtype=np.uint8).astype(np.uint16)
        begins = np.cumsum([0, *map(len, self._documents)])[:-1]
        symbols = np.insert(data, begins, START)
        for begin in range(0, len(symbols) - 1, CHUNK_BYTES):  # a document may be long
            window = symbols[begin : begin + CHUNK_BYTES + 1].astype(np.int64)
            self._counts += np.bincount(window[:-1] * (START + 1) + window[1:], minlength=len(self._counts))
        self._documents, self._size = [], 0


def pair_counts(documents: Iterable[str]) -> NDArray[np.int64]:
    """The `BytePairs.counts` of texts."""
    pairs = BytePairs()
    for text in documents:
        pairs.add(text.encode())
    return pairs.counts()
