"""A disk that loses power: what a process wrote and did not flush may be lost.

Run a command of Mengya on it:   python bench/power_cut.py ROOT LEDGER CUT run recipe.toml --out ROOT

Below ROOT every flush (os.fsync) is entered in the folder LEDGER: of a file its content, of a folder the names in it.
Nothing else counts as being on the disk. At flush number CUT, before it takes effect, the process is killed (0: never).
`lose` then makes of ROOT what a power cut may leave: each file has the content of its last flush or a later one, also
cut off; each folder the names of its last flush or the present ones. It draws at random what else came to the disk.

ROOT must lie on a file system that does not give the number of a deleted file to a new one (tmpfs, such as /dev/shm).
"""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path


class Ledger:
    """What is known to be on the disk: by inode, a file's content or the names in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def enter(self, path: Path) -> None:
        """A flush of a file or a folder."""
        number = path.stat().st_ino
        partial = self.folder / f".{number}.{os.getpid()}"
        if path.is_dir():
            names = {entry.name: [entry.inode(), entry.is_dir()] for entry in os.scandir(path)}
            partial.write_text(json.dumps(names))
            partial.replace(self.folder / f"{number}.names")
        else:
            shutil.copyfile(path, partial)
            partial.replace(self.folder / f"{number}.content")

    def names(self, number: int) -> dict[str, tuple[int, bool]] | None:
        path = self.folder / f"{number}.names"
        return json.loads(path.read_text()) if path.exists() else None

    def content(self, number: int) -> bytes | None:
        path = self.folder / f"{number}.content"
        return path.read_bytes() if path.exists() else None


def lose(root: Path, ledger: Ledger, noise: random.Random) -> None:
    """Make of `root` what a power cut may leave."""
    live: dict[int, bytes] = {}
    listed: dict[int, dict[str, tuple[int, bool]]] = {}
    for folder, _, names in os.walk(root):
        entries = {e.name: (e.inode(), e.is_dir()) for e in os.scandir(folder)}
        listed[os.stat(folder).st_ino] = entries
        live.update((entries[name][0], Path(folder, name).read_bytes()) for name in names)
    left = root.with_name(f"{root.name}.left")
    shutil.rmtree(left, ignore_errors=True)
    everything = noise.random() < 0.1  # a kill, rather than a power cut
    nothing = noise.random() < 0.4

    def later() -> bool:
        return everything or (not nothing and noise.random() < 0.5)

    def build(number: int, target: Path) -> None:
        target.mkdir()
        durable, present = ledger.names(number) or {}, listed.get(number)
        names = present if present is not None and later() else durable
        for name, (inner, is_folder) in names.items():
            if is_folder:
                build(inner, target / name)
            else:
                (target / name).write_bytes(content(inner))

    def content(number: int) -> bytes:
        known, present = ledger.content(number) or b"", live.get(number)
        if present is None or present == known or not later():
            return known
        if everything or noise.random() < 0.5:
            return present
        # What was flushed before something was appended to it stays; what was written over may be gone.
        return present[: noise.randint(len(known) if present.startswith(known) else 0, len(present))]

    build(root.stat().st_ino, left)
    shutil.rmtree(root)
    left.rename(root)
    shutil.rmtree(ledger.folder)
    ledger.folder.mkdir()
    for folder, _, names in os.walk(root):  # what is there now has outlived the cut: it is on the disk
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            ledger.enter(path)


def watch(root: Path, ledger: Ledger, cut: int) -> None:
    """Enter every flush of this process from now on; die before number `cut`."""
    flush, seen = os.fsync, 0

    def entered(descriptor: int) -> None:
        nonlocal seen
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()  # type: ignore[attr-defined]
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        flush(descriptor)
        if path == root or root in path.parents:
            seen += 1
            if seen == cut:
                os.kill(os.getpid(), signal.SIGKILL)
            ledger.enter(path)

    os.fsync = entered


def main() -> None:
    root, folder, cut, *arguments = sys.argv[1:]
    watch(Path(root).resolve(), Ledger(Path(folder)), int(cut))
    from mengya.cli import main as run

    sys.exit(run(arguments))


if __name__ == "__main__":
    main()
