"""Where rows go that cannot be used: counted, written down with file, line and reason, and never lost in silence."""

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mengya.errors import UserError

RAW_CHARS = 500
"""How much of a bad row is kept: enough to recognise it, too little to fill the disk."""


class Quarantine:
    """Context manager around one JSONL file with an object a row: {file, line, reason, raw}.

    The file is created at the first bad row only. `reasons` counts rows per reason, `ignored` counts files of a type
    that no reader knows, per suffix. Reasons are meant to be few: details belong into `raw`.
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

    def add(self, file: str | Path, line: int, reason: str, raw: Any) -> None:
        """Put one row aside. `line` counts from 1; 0 stands for the file as a whole. `raw` may be bytes, text or a
        value."""
        row = {"file": str(file), "line": line, "reason": reason, "raw": _shorten(raw)}
        text = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
        try:
            if self._file is None:
                # A second block of additions must not erase what the first one wrote.
                self._file = self.path.open("a" if self.reasons else "w", encoding="utf-8", newline="\n")
            self._file.write(text + "\n")
        except OSError as error:
            raise self._unwritable(error) from error
        self.reasons[reason] += 1

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
