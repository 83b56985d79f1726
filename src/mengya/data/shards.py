"""Token shards: the documents of a split as flat arrays on disk, in parts of bounded size, memory-mapped.

tokens-00000.bin   uint16 or uint32, by vocabulary
<column>-00000.bin a value for each token, e.g. mask: uint8, 1 where a token is supervised
offsets-00000.bin  int64, documents + 1: document i of the part is tokens[offsets[i] : offsets[i + 1]]
origins.jsonl.zst  [source, id] of every document, in order
shards.json        the columns, the parts and the counts; written last, so that a cut-off directory is not read
"""

import io
import json
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np
import zstandard

from mengya import durable
from mengya.errors import UserError

_META = "shards.json"
_ORIGINS = "origins.jsonl.zst"
PART_TOKENS = 1 << 28
"""A part with this many tokens is closed (512 MB of uint16)."""


class ShardWriter:
    """Appends documents; use as a context manager. Leaving it after an error writes no shards.json."""

    def __init__(
        self, directory: Path, vocab_size: int, columns: dict[str, str] | None = None, part_tokens: int = PART_TOKENS
    ):
        """`columns`: name and number type of each further value that a token has, e.g. {"mask": "uint8"}."""
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        if (self.directory / _META).exists():  # it must be gone from the disk before what it speaks of changes
            (self.directory / _META).unlink()
            durable.flush(self.directory)
        for part in self.directory.glob("*-?????.bin"):
            part.unlink()
        for plan in self.directory.glob("packed-*"):  # of other documents; see best_fit.py
            shutil.rmtree(plan)
        token_type = "uint16" if vocab_size <= 1 << 16 else "uint32"
        self._types = {"tokens": token_type, **(columns or {}), "offsets": "int64"}
        self._files: dict[str, IO[bytes]] = {}
        self._part_tokens = part_tokens
        self.meta: dict = {"dtype": token_type, "columns": columns or {}, "documents": 0, "tokens": 0, "bytes": 0}
        self.meta["parts"] = []
        self._origins = zstandard.open(self.directory / _ORIGINS, "wt", encoding="utf-8", newline="\n")
        self._next_part()

    def _next_part(self) -> None:
        self._close_part()
        number = len(self.meta["parts"])
        self._files = {name: open(self.directory / _file(name, number), "wb") for name in self._types}
        self.meta["parts"].append({"documents": 0, "tokens": 0})
        self._write(offsets=[0])

    def _close_part(self) -> None:
        for file in self._files.values():
            file.close()

    def _write(self, **columns: Sequence) -> None:
        for name, values in columns.items():
            self._files[name].write(np.asarray(values, dtype=self._types[name]).tobytes())

    def append(
        self, ids: Sequence[int], text_bytes: int = 0, origin: tuple[str, str] = ("", ""), **columns: Sequence
    ) -> None:
        """One document. `text_bytes` is the UTF-8 size of its text, `origin` its (source, id)."""
        assert columns.keys() == self.meta["columns"].keys()
        assert all(len(values) == len(ids) for values in columns.values())
        if self.meta["parts"][-1]["tokens"] >= self._part_tokens:
            self._next_part()
        part = self.meta["parts"][-1]
        for counts in (part, self.meta):
            counts["documents"] += 1
            counts["tokens"] += len(ids)
        self.meta["bytes"] += text_bytes
        self._write(tokens=ids, offsets=[part["tokens"]], **columns)
        self._origins.write(json.dumps(origin) + "\n")

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        self._close_part()
        self._origins.close()
        if kind is None:
            durable.flush_tree(self.directory)  # what shards.json says is there must be there, after a power cut too
            durable.replace_text(self.directory / _META, json.dumps(self.meta) + "\n")


class Column:
    """The values of all tokens, one part after another; a slice inside one part is a view of its file."""

    def __init__(self, parts: list[np.ndarray]):
        self._parts = parts
        self.begins = list(accumulate(map(len, parts), initial=0))
        """(parts + 1,) where each part begins, and the length of all."""

    def __len__(self) -> int:
        return self.begins[-1]

    def __getitem__(self, span: slice) -> np.ndarray:
        low, high, _ = span.indices(len(self))
        number = bisect_right(self.begins, low, hi=len(self._parts)) - 1
        begin = self.begins[number]
        if high <= self.begins[number + 1]:  # always true for a document
            return self._parts[number][low - begin : max(low, high) - begin]
        return np.concatenate(self._parts)[low:high]


class Shards:
    """Read access; slices of the columns come from the page cache, so memory does not grow with the corpus."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        if not (self.directory / _META).is_file():
            raise UserError(f"{directory} has no token shards; give the output of the tokenize stage")
        self.meta: dict = json.loads((self.directory / _META).read_text(encoding="utf-8"))
        if "parts" not in self.meta:
            raise UserError(f"{directory} has the layout of an older version; tokenize again")
        self.tokens = Column(self._map("tokens", self.meta["dtype"]))
        self.columns = {name: Column(self._map(name, kind)) for name, kind in self.meta["columns"].items()}
        self.offsets, *more = self._map("offsets", "int64")
        """(documents + 1,) document i is tokens[offsets[i] : offsets[i + 1]], and so in the other columns."""
        if more:
            later = (part[1:] + begin for part, begin in zip(more, self.tokens.begins[1:-1], strict=True))
            self.offsets = np.concatenate([self.offsets, *later])
        sizes = {len(column) for column in (self.tokens, *self.columns.values())}
        if len(self.offsets) != len(self) + 1 or sizes != {self.meta["tokens"]}:
            raise UserError(f"{directory} is damaged (its files disagree with {_META}); delete it and run again")

    def _map(self, name: str, dtype: str) -> list[np.ndarray]:
        """A column's array of each part."""
        paths = [self.directory / _file(name, number) for number in range(len(self.meta["parts"]))]
        # As plain arrays: slices of a memmap are slower by a microsecond each.
        return [np.asarray(np.memmap(p, dtype, "r")) if p.stat().st_size else np.empty(0, dtype) for p in paths]

    def __len__(self) -> int:
        return self.meta["documents"]

    @property
    def lengths(self) -> np.ndarray:
        """(documents,) tokens of each document."""
        return np.diff(self.offsets)

    def origins(self) -> Iterator[tuple[str, str]]:
        """(source, id) of every document, in order."""
        with zstandard.open(self.directory / _ORIGINS, "rb") as packed:
            for line in io.TextIOWrapper(packed, encoding="utf-8", newline="\n"):
                source, place = json.loads(line)
                yield source, place


def _file(name: str, part: int) -> str:
    return f"{name}-{part:05}.bin"
