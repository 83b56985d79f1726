"""What counts as a file of a folder, for those who read it and for those who take its fingerprint."""

import os
from collections.abc import Iterator
from pathlib import Path


def visible_files(folder: Path) -> Iterator[Path]:
    """The files of a folder and of the folders in it, sorted by name: through links, without hidden entries."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        # A link may lead back to a folder above: each real folder is read once.
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))
        seen.add(real)
