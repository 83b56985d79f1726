"""A corpus: the directory in which the corpus stage leaves its documents.

train.jsonl, heldout.jsonl  {"text", "source", "id"} a line
byte_pairs.npz              how often each byte of the training split follows each other byte, for the byte baselines
corpus.json                 counts; written last

A directory that has only the two splits, made by hand ({"text"} a line), is a corpus, too.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mengya.data.documents import Document
from mengya.data.splits import content_hash, cut_tail, is_heldout
from mengya.errors import UserError

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
_PAIRS, _COUNTS = "byte_pairs.npz", "corpus.json"
START = 256  # stands before the first byte of a document
CHUNK_BYTES = 1 << 18  # counting is three times as fast while it stays in a cache


class BytePairs:
    """Counts byte pairs document by document; whole documents are gathered and counted together."""

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


class Corpus:
    """Read access. UserError if the directory is not a corpus."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self._files = {split: self.directory / f"{split}.jsonl" for split in SPLITS}
        missing = [file.name for file in self._files.values() if not file.is_file()]
        if missing:
            raise UserError(f"{directory} is not a corpus (it has no {missing[0]}); use the output of the corpus stage")
        counts = self.directory / _COUNTS
        self.counts: dict = json.loads(counts.read_text(encoding="utf-8")) if counts.is_file() else {}
        """What the stage counted; {} without a stage."""

    def _text_size(self, split: Split) -> int | None:
        """What the stage noted; None if it noted nothing, or the file was changed since."""
        noted = self.counts.get("files", {}).get(split)
        return noted["text_size"] if noted and noted["size"] == self._files[split].stat().st_size else None

    def size(self, split: Split) -> int:
        """Bytes of the rows without their source and id, so that samples do not depend on them."""
        noted = self._text_size(split)
        return self._files[split].stat().st_size if noted is None else noted

    def documents(self, split: Split) -> Iterator[Document]:
        """All of a split, in order."""
        return _documents(self._files[split])

    def texts(self, split: Split) -> Iterator[str]:
        return (document.text for document in self.documents(split))

    def first(self, split: Split, count: int) -> list[str]:
        return list(islice(self.texts(split), count))

    def sample(self, split: Split, max_bytes: int) -> Iterator[str]:
        """Texts spread evenly over a split, about `max_bytes` in all."""
        share = min(1.0, max_bytes / max(self.size(split), 1))
        # The second half of the hash: the first half decided the split, so it is not uniform within one split.
        return (text for text in self.texts(split) if is_heldout(content_hash(text)[8:], share))

    def byte_pairs(self) -> NDArray[np.int64]:
        """(257, 256) counts of the training split, see `BytePairs.counts`."""
        path = self.directory / _PAIRS
        if self._text_size("train") is not None and path.is_file():
            with np.load(path) as stored:
                return stored["counts"]
        return pair_counts(self.texts("train"))


def _documents(path: Path) -> Iterator[Document]:
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                yield Document(row["text"], row.get("source", str(path)), row.get("id", str(number)))
            except (ValueError, KeyError, TypeError) as error:
                message = f'{path}, line {number} is not a row {{"text": …}} ({error}); correct it'
                raise UserError(message) from error


def divide_again(directory: Path, held_out: Sequence[bool], fraction: float) -> "CorpusWriter":
    """Write a corpus of which all documents came into one split once more, divided. `held_out`: where each belongs.

    A single document is divided itself: its tail, about `fraction` of it, is held out. UserError if it is too short.
    """
    full = next(path for split in SPLITS if (path := directory / f"{split}.jsonl").stat().st_size)
    everything = full.rename(directory / "all.jsonl")
    with CorpusWriter(directory) as writer:
        documents = list(_documents(everything)) if len(held_out) == 1 else _documents(everything)
        if isinstance(documents, list):
            front, tail = cut_tail(documents[0].text, fraction)
            if not front or not tail:
                raise UserError(f"the corpus is one document of {len(documents[0].text)} characters; add text")
            writer.add("train", documents[0]._replace(text=front))
            writer.add("heldout", documents[0]._replace(text=tail, id=f"{documents[0].id}/tail"))
        else:
            for document, held in zip(documents, held_out, strict=True):
                writer.add("heldout" if held else "train", document)
    everything.unlink()
    return writer


class CorpusWriter:
    """Writes a corpus document by document; use as a context manager, then call `finish`."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._files = {split: open(directory / f"{split}.jsonl", "wb") for split in SPLITS}
        self._sizes = {split: {"size": 0, "text_size": 0} for split in SPLITS}
        self._pairs = BytePairs()
        self.counts: dict = {"train": 0, "heldout": 0, "train_bytes": 0, "heldout_bytes": 0}

    def add(self, split: Split, document: Document) -> None:
        raw, row = document.text.encode(), _encoded(document._asdict())
        self._files[split].write(row + b"\n")
        self.counts[split] += 1
        self.counts[f"{split}_bytes"] += len(raw)
        size = len(row) + 1
        self._sizes[split]["size"] += size
        self._sizes[split]["text_size"] += size - len(_encoded({"source": document.source, "id": document.id}))
        if split == "train":
            self._pairs.add(raw)

    def __enter__(self) -> "CorpusWriter":
        return self

    def __exit__(self, *_) -> None:
        for file in self._files.values():
            file.close()

    def finish(self, **counts: int) -> None:
        """Write what was counted, and `counts`."""
        np.savez_compressed(self._directory / _PAIRS, counts=self._pairs.counts())
        text = json.dumps({**self.counts, **counts, "files": self._sizes}, indent=2)
        (self._directory / _COUNTS).write_text(text + "\n", encoding="utf-8")


def _encoded(row: dict) -> bytes:
    # A file's name may contain bytes that are not text.
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace")
