"""A corpus: the directory in which the corpus stage leaves its documents.

train.jsonl, heldout.jsonl  {"text", "source", "id"} a line
byte_pairs.npz              the pair counts of the training split's bytes, so that nobody has to read it for them
corpus.json                 counts; written last

A directory with the two splits alone, made by hand or by version 0.1.0 ({"text"} a line), is a corpus, too.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mengya.data.byte_pairs import BytePairs, pair_counts
from mengya.data.documents import Document
from mengya.data.splits import content_hash, is_heldout
from mengya.errors import UserError

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
_PAIRS, _COUNTS = "byte_pairs.npz", "corpus.json"


class Corpus:
    """Read access. UserError if the directory is not a corpus."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        for split in SPLITS:
            if not self._file(split).is_file():
                raise UserError(
                    f"{directory} is not a corpus (it has no {split}.jsonl); use the output of the corpus stage"
                )
        counts = self.directory / _COUNTS
        self.counts: dict = json.loads(counts.read_text(encoding="utf-8")) if counts.is_file() else {}
        """What the stage counted; {} without a stage."""

    def _file(self, split: Split) -> Path:
        return self.directory / f"{split}.jsonl"

    def _counted(self, split: Split) -> dict[str, int] | None:
        """What the stage noted of a split's file; None if it noted nothing, or the file is not the same any more."""
        noted = self.counts.get("files", {}).get(split)
        return noted if noted and noted["size"] == self._file(split).stat().st_size else None

    def size(self, split: Split) -> int:
        """Bytes of the rows {"text"}: what their identity adds does not count, so that samples do not depend on it."""
        noted = self._counted(split)
        return noted["text_size"] if noted else self._file(split).stat().st_size

    def documents(self, split: Split) -> Iterator[Document]:
        """All of a split, in order."""
        path = self._file(split)
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    yield Document(row["text"], row.get("source", str(path)), row.get("id", str(number)))
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f'{path}, line {number} is not a row {{"text": …}} ({error}); correct it'
                    ) from error

    def texts(self, split: Split) -> Iterator[str]:
        return (document.text for document in self.documents(split))

    def first(self, split: Split, count: int) -> list[str]:
        return list(islice(self.texts(split), count))

    def sample(self, split: Split, max_bytes: int) -> Iterator[str]:
        """Texts spread evenly over a split, about `max_bytes` in all."""
        share = min(1.0, max_bytes / max(self.size(split), 1))
        # The second half of the hash: the first decided which split the document is in, so that within one split it is
        # anything but uniform.
        return (text for text in self.texts(split) if is_heldout(content_hash(text)[8:], share))

    def byte_pairs(self) -> NDArray[np.int64]:
        """(257, 256) counts of the training split, see `BytePairs.counts`."""
        path = self.directory / _PAIRS
        if self._counted("train") and path.is_file():
            with np.load(path) as stored:
                return stored["counts"]
        return pair_counts(self.texts("train"))


class CorpusWriter:
    """Writes a corpus document by document; use as a context manager, then call `finish`."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._files = {split: open(directory / f"{split}.jsonl", "wb") for split in SPLITS}
        self._text_sizes = dict.fromkeys(SPLITS, 0)
        self._pairs = BytePairs()
        self.counts: dict = {"train": 0, "heldout": 0, "train_bytes": 0, "heldout_bytes": 0}

    def add(self, split: Split, document: Document) -> None:
        raw, row = document.text.encode(), _encoded(document._asdict())
        self._files[split].write(row + b"\n")
        self.counts[split] += 1
        self.counts[f"{split}_bytes"] += len(raw)
        self._text_sizes[split] += len(row) + 1 - len(_encoded({"source": document.source, "id": document.id}))
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
        sizes = {split: (self._directory / f"{split}.jsonl").stat().st_size for split in SPLITS}
        files = {split: {"size": sizes[split], "text_size": self._text_sizes[split]} for split in SPLITS}
        text = json.dumps({**self.counts, **counts, "files": files}, indent=2)
        (self._directory / _COUNTS).write_text(text + "\n", encoding="utf-8")


def _encoded(row: dict) -> bytes:
    # A file's name may hold bytes that are not text.
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace")
