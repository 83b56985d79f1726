"""The one way to make things whole on disk: written, flushed, renamed, and the folder flushed.

After a crash or a power cut there is the old or the new, whole. What is not flushed may be lost with the power, or come
to the disk in another order: so the content is flushed before the name, and what is replaced goes last.
"""

import json
import os
from pathlib import Path


def flush(path: Path) -> None:
    """Force a file's content, or the names in a folder, to the disk."""
    if path.is_dir() and os.name != "posix":  # elsewhere a folder cannot be flushed
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(directory: Path, without: tuple[str, ...] = ()) -> None:
    """Force all files below a folder, and their names, to the disk; but not those in its own folders `without`."""
    for root, folders, names in os.walk(directory, topdown=True):
        if Path(root) == directory:
            folders[:] = [name for name in folders if name not in without]
        for name in names:
            flush(Path(root, name))
        flush(Path(root))


def rename(source: Path, target: Path) -> None:
    """Give something whole its name, for good. Its content must be flushed already."""
    source.rename(target)
    flush(target.parent)


def replace_text(path: Path, text: str) -> None:
    """The old content or the new, never half of it: a full disk, a crash or a power cut leaves the old."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        flush(partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_json(path: Path, value: object) -> None:
    """`replace_text` with a value as JSON."""
    replace_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
