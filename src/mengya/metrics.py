"""Where numbers go: `metrics.jsonl` always, and the console."""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mengya import durable

console = Console(stderr=False, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line for the user, not interpreted as markup."""
    console.print(message, markup=False, emoji=False)


def read_jsonl(path: Path) -> Iterator[dict]:
    """The objects of a JSONL file; a last line that a crash cut off is left out."""
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.endswith("\n") and line.strip():
                yield json.loads(line)


def finite(value: Any) -> Any:
    """None for NaN and infinity, which a skipped step may have and JSON has not; also inside of mappings and lists."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(row: dict) -> str:
    return json.dumps(finite(row), ensure_ascii=False) + "\n"


class MetricsLog:
    """Appends one JSON object a step. Opened to go on after `step`, it first drops the later rows that a crash left."""

    def __init__(self, path: Path, step: int):
        if path.exists():  # a crash while rows are copied must not lose them
            durable.replace_text(path, "".join(_line(row) for row in read_jsonl(path) if row["step"] <= step))
        self._path = path
        self._file: IO[str] = open(path, "a", encoding="utf-8", newline="\n")

    def write(self, row: dict) -> None:
        self._file.write(_line(row))
        self._file.flush()

    def flush(self) -> None:
        """Force all rows to the disk, before anything there says that their steps are done."""
        self._file.flush()
        durable.flush(self._path)
        durable.flush(self._path.parent)

    def close(self) -> None:
        self._file.close()


class ProgressLine:
    """A bar on a terminal; elsewhere a plain line every few seconds. Use as a context manager."""

    _SECONDS = 5.0

    def __init__(self, title: str, total: int, done: int = 0):
        self._title, self._total, self._done = title, total, done
        self._begin, self._at_begin, self._last = time.monotonic(), done, 0.0
        self._text = ""
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total} {task.fields[text]}"),
                TimeRemainingColumn(compact=True),
                console=console,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, text="")

    def __enter__(self) -> "ProgressLine":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None and self._text:
            self._print()

    def update(self, done: int, text: str) -> None:
        self._done, self._text = done, text
        if self._bar:
            self._bar.update(self._task, completed=done, text=text)
        elif time.monotonic() - self._last >= self._SECONDS:
            self._print()

    def _print(self) -> None:
        self._last = time.monotonic()
        rate = (self._done - self._at_begin) / max(self._last - self._begin, 1e-9)
        left = self._total - self._done
        eta = f", eta {format_seconds(left / rate)}" if rate and left > 0 else ""
        print(f"{self._title} {self._done}/{self._total} {self._text}{eta}", flush=True)
        self._text = ""  # said


def format_seconds(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def format_count(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
