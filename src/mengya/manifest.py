"""`stage.json`: what an artifact was made from. The chain of manifests leads from a model back to the raw files."""

import contextlib
import glob
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mengya.durable import write_json
from mengya.errors import UserError

FILE = "stage.json"
UNFINISHED = "unfinished.json"
"""The note in a directory that a stage has begun to fill."""
DIGESTS = ".digests.json"
_SETTLED_NS = 2 * 10**9
"""The coarsest times that a file system keeps (FAT) are 2 s apart."""


def digest(value: object) -> str:
    """Fingerprint of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_object(path: Path, remedy: str) -> dict:
    """The object in a JSON file; UserError, with the remedy, if it cannot be read or contains something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold an object; {remedy}")
    return content


def read(directory: Path) -> dict | None:
    """The manifest in a directory; None if it has none of ours. UserError if it is cut off."""
    path = Path(directory) / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete {directory} and run again") from error
    return content if isinstance(content, dict) and {"stage", "fingerprint", "inputs"} <= content.keys() else None


def find(path: Path) -> tuple[Path, dict] | None:
    """The artifact that `path` is, or in which it lies at most two folders deep, and its manifest."""
    path = Path(os.path.abspath(path))
    for directory in (path, *path.parents[:2]):
        if found := read(directory):
            return directory, found
    return None


def _identity(file: Path) -> list[int]:
    """What changes when a file is edited. The time of the last change of status (ctime) cannot be set back."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def is_artifact(folder: Path) -> bool:
    """Whether a stage has filled a folder, or has begun to."""
    return (folder / FILE).is_file() or (folder / UNFINISHED).is_file()


def matches(pattern: str) -> list[Path]:
    """What a path or a glob names now, sorted, without what a glob finds in artifacts; `~` is the home folder."""
    pattern = os.path.expanduser(pattern)
    if os.path.exists(pattern):
        return [Path(pattern)]
    fixed = next(folder for folder in Path(pattern).parents if not glob.has_magic(str(folder)))
    found = sorted(map(Path, glob.glob(pattern, recursive=True)))
    return [path for path in found if not any(is_artifact(f) for f in (path, *path.parents) if fixed in f.parents)]


def visible_files(folder: Path) -> Iterator[Path]:
    """The files of a folder and of the folders in it, sorted by name: through links, without hidden entries, and
    without artifacts, which a run may be writing there. These are the files that are read, and those that count for
    the fingerprint."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        # A link may lead back to a folder above: each real folder is read once.
        visible = (name for name in folders if not name.startswith(".") and not is_artifact(Path(root, name)))
        folders[:] = [] if real in seen else sorted(visible)
        if real not in seen:
            yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))
        seen.add(real)


def sha256_of(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Digests:
    """The SHA-256 of files, remembered in a file in `root` by path, size, times and inode, so that only what has
    changed is read again. That file may be damaged or deleted at any time. Use as a context manager."""

    def __init__(self, root: Path):
        self._cache, self._known, self._changed = root / DIGESTS, {}, False
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(self._cache.read_text(encoding="utf-8"))
            self._known = content if isinstance(content, dict) else {}

    def __call__(self, file: Path) -> str:
        key, identity = os.path.abspath(file), _identity(file)
        match self._known.get(key):
            case [found, str(value)] if found == identity:
                return value
        begun = time.time_ns()
        value = sha256_of(file)
        # A file that was changed a moment ago may change again within the same tick of its times: not remembered yet.
        if begun - max(identity[1:3]) > _SETTLED_NS and _identity(file) == identity:
            self._known[key] = [identity, value]
            self._changed = True
        return value

    def __enter__(self) -> "Digests":
        return self

    def __exit__(self, *_: object) -> None:
        if self._changed:
            with contextlib.suppress(OSError):  # without the file the next start only takes longer
                write_json(self._cache, self._known)


def fingerprints_of(paths: list[Path], root: Path) -> list[str]:
    """Of several inputs; `root` as in `Digests`."""
    with Digests(root) as sha256:
        return [fingerprint_of(path, sha256) for path in paths]


def fingerprint_of(path: Path, sha256: Callable[[Path], str] = sha256_of) -> str:
    """Of an input: an artifact's own (with the path inside it), otherwise the digest of the contents of the file, or of
    all files below the folder by relative name, without dangling links and pipes."""
    artifact = find(path)
    if artifact is None:
        files = {path.name: path}
        if path.is_dir():
            files = {p.relative_to(path).as_posix(): p for p in visible_files(path) if p.is_file()}
        return digest([[name, sha256(files[name])] for name in sorted(files)])
    directory, manifest = artifact
    inside = Path(os.path.abspath(path)).relative_to(directory).as_posix()
    found = manifest["fingerprint"] if inside == "." else f"{manifest['fingerprint']}/{inside}"
    edited = changed_files(directory, manifest, sha256, inside)
    # What was edited by hand is another input: noticed here, and written into the next manifest.
    return digest([found, edited]) if edited else found


def changed_files(
    directory: Path, manifest: dict, sha256: Callable[[Path], str] = sha256_of, inside: str = "."
) -> dict[str, str | None]:
    """The files of an artifact, at or below `inside`, whose content is not what the stage wrote: name -> what it is
    now, None for a file that is gone."""
    found: dict[str, str | None] = {}
    for name, written in manifest.get("sha256", {}).items():
        if inside in (".", name) or name.startswith(f"{inside}/"):
            file = directory / name
            now = sha256(file) if file.is_file() else None
            if now != written:
                found[name] = now
    return found


def chain(directories: list[Path]) -> list[dict]:
    """The manifests of these artifacts and of everything that they were made from, sources first, each once; with
    `directory`, their path."""
    found: dict[str, dict] = {}

    def visit(path: Path) -> None:
        artifact = find(path)
        if artifact is None or artifact[1]["fingerprint"] in found:
            return
        directory, manifest = artifact
        for entry in manifest["inputs"]:
            if entry["artifact"]:
                visit(directory / entry["path"])
        found[manifest["fingerprint"]] = manifest | {"directory": str(directory)}

    for directory in directories:
        visit(directory)
    return list(found.values())
