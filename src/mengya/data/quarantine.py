"""Rows that cannot be used: they are counted, and written down with file, line and reason."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from mengya.data.files import Paths, scan_files
from mengya.data.readers.rows import Rejected
from mengya.errors import UserError

T = TypeVar("T")

RAW_CHARS = 500
"""How much of a bad row is written down: enough to recognise it, too little to fill the disk."""


class Quarantine:
    """Context manager around one JSONL file: a line {file, line, reason, raw} for each row that was put aside.

    The first bad row creates the file. `reasons` counts rows by reason; `ignored` counts files of a type that no reader
    knows, by suffix.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.reasons: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self._file: IO[str] | None = None

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with self._full_disk_explained():
                file.close()

    @property
    def count(self) -> int:
        """Rows (or, for files that cannot be read at all, files) put aside so far."""
        return self.reasons.total()

    def files(self, paths: Paths) -> list[Path]:
        """The files under `paths` that a reader knows; the others are counted."""
        files, ignored = scan_files(paths)
        self.ignored.update(path.suffix.lower() for path in ignored)
        own = os.path.realpath(self.path)  # left in the folder by an earlier run, and being written now
        return [file for file in files if os.path.realpath(file) != own]

    def without(self, items: Iterable[T | Rejected]) -> Iterator[T]:
        """`items` without the rejected ones, which are put aside."""
        for item in items:
            if isinstance(item, Rejected):
                self.add(item)
            else:
                yield item

    def add(self, item: Rejected) -> None:
        """Put one row aside."""
        row = item._asdict() | {"raw": _shorten(item.raw)}
        with self._full_disk_explained():
            if self._file is None:
                # A second block of additions must not erase what the first one wrote.
                mode = "a" if self.reasons else "w"
                self._file = self.path.open(mode, encoding="utf-8", errors="backslashreplace", newline="\n")
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.reasons[item.reason] += 1

    @contextmanager
    def _full_disk_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"cannot write {self.path}: {error.strerror}; make room or write to another folder"
            raise UserError(message) from error

    def summary(self) -> str:
        """One line for the console: how many rows were put aside, why, and where they lie."""
        line = "no row quarantined"
        if self.reasons:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
            line = f"{self.count:,} quarantined in {self.path.name}: {reasons}"
        if self.ignored:
            kinds = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in self.ignored.most_common())
            line += f"; {self.ignored.total():,} files of other types ignored ({kinds})"
        return line


def _shorten(raw: Any) -> str:
    if isinstance(raw, bytes):
        raw = raw[: 4 * RAW_CHARS].decode("utf-8", "backslashreplace")
    text = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, default=str)
    return text[:RAW_CHARS]
