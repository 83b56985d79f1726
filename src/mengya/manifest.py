"""`stage.json`: what an artifact was made from. The chain of manifests leads from a model back to the raw files."""

import hashlib
import json
from pathlib import Path

from mengya.errors import UserError

FILE = "stage.json"


def digest(value: object) -> str:
    """Fingerprint of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(directory: Path) -> dict | None:
    """The manifest of a whole artifact, or None."""
    path = Path(directory) / FILE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete {directory} and run again") from error


def _digest_files(path: Path) -> str:
    """Of the contents of a file or of all files below a folder, by relative name."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
    else:
        files = [path]
    found = []
    for file in files:
        with open(file, "rb") as handle:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            found.append([name, hashlib.file_digest(handle, "sha256").hexdigest()])
    return digest(found)


def fingerprint_of(path: Path) -> str:
    """Of an input: an artifact's own (with the path inside it), otherwise the digest of the contents."""
    for ancestor in (path, *path.parents[:2]):
        manifest = read(ancestor) if ancestor.is_dir() else None
        if manifest:
            inside = path.relative_to(ancestor).as_posix()
            return manifest["fingerprint"] if inside == "." else f"{manifest['fingerprint']}/{inside}"
    return _digest_files(path)


def chain(directories: list[Path]) -> list[dict]:
    """The manifests of these artifacts and of everything they were made from, sources first, each once.

    Each gains `directory`, its path.
    """
    found: dict[str, dict] = {}

    def visit(directory: Path) -> None:
        for ancestor in (directory, *directory.parents[:2]):
            manifest = read(ancestor) if ancestor.is_dir() else None
            if manifest is None:
                continue
            if manifest["fingerprint"] in found:
                return
            for entry in manifest["inputs"]:
                if entry["artifact"]:
                    visit((ancestor / entry["path"]).resolve())
            found[manifest["fingerprint"]] = manifest | {"directory": str(ancestor)}
            return

    for directory in directories:
        visit(Path(directory).resolve())
    return list(found.values())
