"""`stage.json`: what an artifact was made from. The chain of manifests leads from a model back to the raw files."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from mengya.errors import UserError

FILE = "stage.json"


def digest(value: object) -> str:
    """Fingerprint of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, value: object) -> None:
    """The old content or the new, never half of it: a full disk or a crash leaves the old."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read(directory: Path) -> dict | None:
    """The manifest in a directory; None if there is none of ours. UserError if it is cut off."""
    path = Path(directory) / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete {directory} and run again") from error
    return content if isinstance(content, dict) and {"stage", "fingerprint", "inputs"} <= content.keys() else None


def find(path: Path) -> tuple[Path, dict] | None:
    """The artifact that `path` is, or lies in at most two folders deep, and its manifest."""
    path = Path(os.path.abspath(path))
    for directory in (path, *path.parents[:2]):
        found = read(directory)
        if found:
            return directory, found
    return None


def visible_files(folder: Path) -> Iterator[Path]:
    """What the readers find in a folder, sorted by name: through links, without hidden entries."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        # A link may lead back to a folder above: each real folder is read once.
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))
        seen.add(real)


def _digest_files(path: Path) -> str:
    """Of the contents of a file or of all files below a folder, by relative name; no dangling link, no pipe."""
    files = {path.name: path}
    if path.is_dir():
        files = {p.relative_to(path).as_posix(): p for p in visible_files(path) if p.is_file()}
    found = []
    for name in sorted(files):
        with open(files[name], "rb") as handle:
            found.append([name, hashlib.file_digest(handle, "sha256").hexdigest()])
    return digest(found)


def fingerprint_of(path: Path) -> str:
    """Of an input: an artifact's own (with the path inside it), otherwise the digest of the contents."""
    artifact = find(path)
    if artifact is None:
        return _digest_files(path)
    directory, manifest = artifact
    inside = Path(os.path.abspath(path)).relative_to(directory).as_posix()
    return manifest["fingerprint"] if inside == "." else f"{manifest['fingerprint']}/{inside}"


def chain(directories: list[Path]) -> list[dict]:
    """The manifests of these artifacts and of everything they were made from, sources first, each once.

    Each gains `directory`, its path.
    """
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
