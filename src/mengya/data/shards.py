"""Token shards: the documents of a split as one flat array on disk, memory-mapped.

tokens.bin   uint16 or uint32, by vocabulary
mask.bin     uint8, 1 where a token is supervised (only if written with masks)
offsets.bin  int64, documents + 1: document i is tokens[offsets[i] : offsets[i + 1]]
shards.json  the counts; written last, so that a cut-off directory is not taken for a whole one
"""

import json
from pathlib import Path

import numpy as np

from mengya.errors import UserError

_META = "shards.json"


class ShardWriter:
    """Appends documents; use as a context manager. Leaving it after an error writes no shards.json."""

    def __init__(self, directory: Path, vocab_size: int, masked: bool = False):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / _META).unlink(missing_ok=True)
        self._dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self._tokens = open(self.directory / "tokens.bin", "wb")
        self._offsets = open(self.directory / "offsets.bin", "wb")
        self._offsets.write(np.int64(0).tobytes())
        self._mask = open(self.directory / "mask.bin", "wb") if masked else None
        self.meta: dict = {"dtype": self._dtype.name, "masked": masked, "documents": 0, "tokens": 0, "bytes": 0}

    def append(self, ids: list[int], mask: list[int] | None = None, text_bytes: int = 0) -> None:
        """One document; `text_bytes` is the UTF-8 size of its text."""
        self._tokens.write(np.asarray(ids, dtype=self._dtype).tobytes())
        if self._mask is not None:
            assert mask is not None and len(mask) == len(ids)
            self._mask.write(np.asarray(mask, dtype=np.uint8).tobytes())
        self.meta["documents"] += 1
        self.meta["tokens"] += len(ids)
        self.meta["bytes"] += text_bytes
        self._offsets.write(np.int64(self.meta["tokens"]).tobytes())

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        for file in (self._tokens, self._offsets, self._mask):
            if file is not None:
                file.close()
        if kind is None:
            (self.directory / _META).write_text(json.dumps(self.meta) + "\n", encoding="utf-8")


class Shards:
    """Read access; slices of the arrays come from the page cache, so memory does not grow with the corpus."""

    def __init__(self, directory: Path):
        directory = Path(directory)
        if not (directory / _META).is_file():
            raise UserError(f"{directory} holds no token shards; give the output of the tokenize stage")
        self.meta: dict = json.loads((directory / _META).read_text(encoding="utf-8"))
        self.tokens = self._map(directory / "tokens.bin", np.dtype(self.meta["dtype"]))
        self.offsets = self._map(directory / "offsets.bin", np.dtype(np.int64))
        self.mask = self._map(directory / "mask.bin", np.dtype(np.uint8)) if self.meta["masked"] else None
        if len(self.offsets) != len(self) + 1 or len(self.tokens) != self.meta["tokens"]:
            raise UserError(f"{directory} is damaged (its files disagree with {_META}); delete it and run again")

    @staticmethod
    def _map(path: Path, dtype: np.dtype) -> np.ndarray:
        return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)

    def __len__(self) -> int:
        return self.meta["documents"]

    @property
    def lengths(self) -> np.ndarray:
        """(documents,) tokens of each document."""
        return np.diff(self.offsets)
