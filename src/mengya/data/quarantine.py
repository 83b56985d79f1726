"""Where rows go that cannot be used: counted, written down with file, line and reason, and never lost in silence."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from mengya.data.files import scan_files
from mengya.data.readers.rows import Rejected
from mengya.errors import UserError

T = TypeVar("T")

RAW_CHARS = 500
"""How much of a bad row is kept: enough to recognise it, too little to fill the disk."""


class Quarantine:
    """Context manager around one JSONL file with an object a row: {file, line, reason, raw}.

    The file is created at the first bad row only. `reasons` counts rows per reason, `ignored` counts files of a type
    that no reader knows, per suffix.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.reasons: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self._file: IO[str] | None = None

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                raise self._unwritable(error) from error
            finally:
                self._file = None

    @property
    def count(self) -> int:
        """Rows (or, for files that cannot be read at all, files) put aside so far."""
        return self.reasons.total()

    def files(self, paths: str | Path | list[str] | list[Path]) -> list[Path]:
        """The files under `paths` that a reader knows; the others are counted."""
        found = scan_files(paths)
        self.ignored.update(path.suffix.lower() for path in found.ignored)
        own = os.path.realpath(self.path)  # left in the folder by an earlier run, and being written now
        return [file for file in found.files if os.path.realpath(file) != own]

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
        text = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
        try:
            if self._file is None:
                # A second block of additions must not erase what the first one wrote.
                self._file = self.path.open("a" if self.reasons else "w", encoding="utf-8", newline="\n")
            self._file.write(text + "\n")
        except OSError as error:
            raise self._unwritable(error) from error
        self.reasons[item.reason] += 1

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self.path}: {error.strerror}; make room or write to another folder")

    def summary(self) -> str:
        """One line for the console: how many rows were put aside, why, and where they lie."""
        parts = []
        if self.reasons:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
            parts.append(f"{self.count:,} quarantined in {self.path.name}: {reasons}")
        else:
            parts.append("no row quarantined")
        if self.ignored:
            kinds = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in self.ignored.most_common())
            parts.append(f"{self.ignored.total():,} files of other types ignored ({kinds})")
        return "; ".join(parts)


def _shorten(raw: Any) -> str:
    if isinstance(raw, bytes):
        return raw[: 4 * RAW_CHARS].decode("utf-8", "backslashreplace")[:RAW_CHARS]
    if isinstance(raw, str):
        return raw[:RAW_CHARS]
    return json.dumps(raw, ensure_ascii=False, default=str)[:RAW_CHARS]
