"""mengya index --kb NAME FILE…: documents into a knowledge base."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mengya.commands import Command
from mengya.errors import UserError
from mengya.schema import Argument, config

if TYPE_CHECKING:
    from mengya.rag.store import Embedder, KnowledgeBase

_SECONDS = 5.0
"""Between two lines that tell how far a file is read."""


@config
class Config:
    """Put documents into a knowledge base, which `mengya ask` and `mengya serve` answer from; list or remove them."""

    files: Annotated[list[str], Argument("FILE")] = dataclasses.field(default_factory=list)
    """Files or folders. A file that is there already is read again only if its content has changed."""
    kb: str | None = None
    """Name of the knowledge base; it is made if there is none. Without: the names of all are shown."""
    folder: Path = Path("knowledge")
    """Where the knowledge bases are."""
    remove: list[str] = dataclasses.field(default_factory=list)
    """Remove this file, by the name under which it was added (may be given several times)."""
    list_: bool = False
    """Show what the knowledge base holds."""
    embeddings: Path | None = None
    """A sentence-transformers directory, whose vectors find passages besides their words."""

    def __post_init__(self) -> None:
        if self.kb is None and (self.files or self.remove or self.list_):
            raise UserError("name the knowledge base: --kb NAME")


def run(config: Config) -> None:
    from mengya.metrics import say
    from mengya.rag.document import notes_of
    from mengya.rag.store import KnowledgeFolder
    from mengya.rag.vectors import open_embedder

    folder = KnowledgeFolder(config.folder)
    if config.kb is None:
        for name in folder.names():
            say(name)
        return
    embedder = open_embedder(config.embeddings) if config.embeddings else None
    base = folder.open_or_create(config.kb) if config.files else folder.open(config.kb)
    for name in config.remove:
        if not base.remove(name):
            raise UserError(f"{config.kb} holds no file {name!r}; --list shows its files")
        say(f"- {name}")
    failed = _add(base, _found(config.files), embedder)
    for name in _gone(base, config.files):
        say(f"? {name}  is not in its folder any more; --remove {name} forgets it")
    if config.list_ or not (config.files or config.remove):
        for file in base.files():
            unread = [str(page.number) for page in file.pages if page.state == "unread"]
            notes = [
                *file.notes,
                *notes_of(file.pages),
                *([f"pages {', '.join(unread)} could not be read"] if unread else []),
            ]
            say("  ".join([file.name, f"{file.passages} passages", *notes]))
    if failed:
        raise UserError(f"{failed} of the files were not added; the reasons stand above")


def _found(given: list[str]) -> list[Path]:
    """The files, and those in the folders, hidden ones left out. UserError for what is not there."""
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            inside = (file for file in sorted(path.rglob("*")) if file.is_file())
            found += [file for file in inside if not any(part[0] == "." for part in file.relative_to(path).parts)]
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path} is neither a file nor a folder")
    return found


def _gone(base: "KnowledgeBase", given: list[str]) -> list[str]:
    """Files of the base that came from one of these folders, and are not there now: renamed, moved or deleted."""
    from mengya.rag.reading.names import name_as_text

    folders = [name_as_text(Path(name).as_posix()) + "/" for name in given if Path(name).is_dir()]
    names = [file.name for file in base.files()]
    return [name for name in names if name.startswith(tuple(folders)) and not Path(name).exists()]


def _add(base: "KnowledgeBase", files: list[Path], embedder: "Embedder | None") -> int:
    """How many could not be added."""
    from mengya.manifest import sha256_of
    from mengya.metrics import say
    from mengya.rag.document import notes_of
    from mengya.rag.reading.names import name_as_text
    from mengya.rag.reading.worker import read_file

    failed = 0
    for number, path in enumerate(files, 1):
        name, content = name_as_text(path.as_posix()), sha256_of(path)
        if base.holds(name, content, embedder):
            say(f"= {name}")
            continue
        try:
            document = base.parsed(content)
            if document is None:
                document = read_file(path, name, progress=_Pages(f"{number}/{len(files)} {name}"))
            change = base.add(dataclasses.replace(document, name=name), content, embedder)
        except UserError as error:  # the other files are wanted still
            failed += 1
            say(f"! {error}")
            continue
        say(f"{'+' if change == 'new' else '~'} {name}  {len(base.passages_of(name))} passages")
        for note in (*document.notes, *notes_of(document.pages)):
            say(f"  {note}")
    return failed


class _Pages:
    """A line every few seconds while a file is read."""

    def __init__(self, title: str):
        self._title, self._last = title, time.monotonic()

    def __call__(self, done: int, pages: int) -> None:
        from mengya.metrics import say

        if pages and time.monotonic() - self._last >= _SECONDS:
            self._last = time.monotonic()
            say(f"{self._title}: page {done} of {pages}")


COMMAND = Command(Config, run)
