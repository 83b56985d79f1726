"""What became of every row that was read: used, used in part, or put aside with file, line and reason."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from mengya import durable
from mengya.data.fields import Notes
from mengya.data.files import Paths, scan_files
from mengya.data.readers import Rejected, Row, read_rows
from mengya.errors import UserError
from mengya.metrics import say

T = TypeVar("T")

RAW_CHARS = 500
"""How much of a bad row is written down: enough to recognise it, too little to fill the disk."""
FILE = "intake.json"
SHOWN = 10
"""Files, and fields of a file, that the console shows."""


@dataclass
class FileCounts:
    """The rows of one file; each is in one of the first three numbers."""

    used: int = 0
    """Rows of which everything was read."""
    partly_read: int = 0
    """Rows that are used, but have a field that was not read, or turns that cannot be trained on."""
    quarantined: int = 0
    lost_turns: int = 0
    """Turns before the first question or after the last answer."""
    fields_read: Counter[str] = field(default_factory=Counter)
    """Field -> rows in which it was read."""
    fields_not_read: Counter[str] = field(default_factory=Counter)
    """Field -> rows in which it is filled, and was not read."""
    text_field: str | None = None
    """Of documents: the field that holds their text."""
    characters: int = 0
    """Of documents: those of their text."""

    @property
    def rows(self) -> int:
        return self.used + self.partly_read + self.quarantined

    def to_json(self) -> dict[str, Any]:
        found = {"rows": self.rows, **dataclasses.asdict(self)}
        return found | {n: dict(getattr(self, n).most_common()) for n in ("fields_read", "fields_not_read")}


class Intake:
    """Context manager around one JSONL file: a line {file, line, reason, raw} for each row that was put aside.

    The first bad row creates the file; with None, nothing is written. `counts` are those of each file; `reasons` counts
    bad rows by reason; `ignored` counts files of a type that no reader knows, by suffix.
    """

    def __init__(self, quarantine: str | Path | None):
        self.path = None if quarantine is None else Path(quarantine)
        self.counts: dict[str, FileCounts] = {}
        self.reasons: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self._file: IO[str] | None = None

    def __enter__(self) -> "Intake":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with self._full_disk_explained():
                file.close()

    @property
    def quarantined(self) -> int:
        """Rows (or, for files that cannot be read at all, files) put aside so far."""
        return self.reasons.total()

    def files(self, paths: Paths) -> list[Path]:
        """The files under `paths` that a reader knows; the others are counted."""
        files, ignored = scan_files(paths)
        self.ignored.update(path.suffix.lower() for path in ignored)
        own = self.path and os.path.realpath(self.path)  # left in the folder by an earlier run, and being written now
        return [file for file in files if os.path.realpath(file) != own]

    def of(self, file: str) -> FileCounts:
        """The counts of one file."""
        return self.counts.setdefault(file, FileCounts())

    def rows(self, file: Path) -> Iterator[Row]:
        """The rows of a file. The rejected ones are put aside; what stands around the rows is counted as not read."""
        self.of(str(file))  # a file without any row is told of, too
        for row in self.without(read_rows(file)):
            self.of(row.file).fields_not_read.update(row.around)
            yield row

    def use(self, file: str, notes: Notes) -> None:
        """Count a row that is used."""
        counts = self.of(file)
        if notes.partly:
            counts.partly_read += 1
        else:
            counts.used += 1
        counts.lost_turns += notes.lost_turns
        counts.fields_read.update(notes.read)
        counts.fields_not_read.update(notes.not_read)

    def without(self, items: Iterable[T | Rejected]) -> Iterator[T]:
        """`items` without the rejected ones, which are put aside."""
        for item in items:
            if isinstance(item, Rejected):
                self.add(item)
            else:
                yield item

    def add(self, item: Rejected) -> None:
        """Put one row aside."""
        if self.path is not None:
            self._write_down(self.path, item)
        self.reasons[item.reason] += 1
        counts = self.of(item.file)
        counts.quarantined += 1
        if item.partly is not None:  # it had been counted before a later step refused it
            counts.partly_read -= item.partly
            counts.used -= not item.partly

    def _write_down(self, path: Path, item: Rejected) -> None:
        row = {"file": item.file, "line": item.line, "reason": item.reason, "raw": shorten(item.raw)}
        with self._full_disk_explained():
            if self._file is None:
                # A second block of additions must not erase what the first one wrote.
                mode = "a" if self.reasons else "w"
                self._file = path.open(mode, encoding="utf-8", errors="backslashreplace", newline="\n")
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @contextmanager
    def _full_disk_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"cannot write {self.path}: {error.strerror}; make room or write to another folder"
            raise UserError(message) from error

    def to_json(self) -> dict[str, Any]:
        """File -> what became of its rows."""
        return {file: counts.to_json() for file, counts in self.counts.items()}

    def write(self, directory: Path) -> None:
        """Write intake.json, {file: counts}, for good; what was put aside is on the disk before it."""
        if self.reasons and self.path is not None:
            durable.flush(self.path)
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=1)
        durable.replace_text(directory / FILE, text.encode("utf-8", "backslashreplace").decode() + "\n")

    def tell(self) -> None:
        """Say what was read, a line for each file and one for all."""
        for file, counts in list(self.counts.items())[:SHOWN]:
            say(f"  {Path(file).name}: {describe(counts)}")
        if len(self.counts) > SHOWN:
            say(f"  and {len(self.counts) - SHOWN:,} more files: see {FILE}")
        say(f"  {self.summary()}")

    def summary(self) -> str:
        """One line for the console: how many rows were put aside, why, and where they lie."""
        line = "no row quarantined"
        if self.reasons:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
            place = f" in {self.path.name}" if self.path else ""
            line = f"{self.quarantined:,} quarantined{place}: {reasons}"
        if self.ignored:
            kinds = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in self.ignored.most_common())
            line += f"; {self.ignored.total():,} files of other types ignored ({kinds})"
        return line


def describe(counts: FileCounts) -> str:
    """One line about the rows of a file."""
    parts = [f"{counts.rows:,} rows"]
    if counts.text_field is not None:
        average = counts.characters / max(counts.used + counts.partly_read, 1)
        parts.append(f"text in {counts.text_field!r} ({average:,.0f} characters on average)")
    if counts.partly_read:
        parts.append(f"{counts.partly_read:,} read partly")
    if counts.fields_not_read:
        common = counts.fields_not_read.most_common(SHOWN)
        more = len(counts.fields_not_read) - len(common)
        named = ", ".join(f"{name} ({rows:,} rows)" for name, rows in common)
        parts.append(f"not read: {named}" + (f" and {more} more" if more else ""))
    if counts.lost_turns:
        parts.append(f"{counts.lost_turns:,} turns before a question or after the last answer left out")
    if counts.quarantined:
        parts.append(f"{counts.quarantined:,} quarantined")
    return "; ".join(parts)


def shorten(raw: Any) -> str:
    if isinstance(raw, bytes):
        raw = raw[: 4 * RAW_CHARS].decode("utf-8", "backslashreplace")
    text = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, default=str)
    return text[:RAW_CHARS]
