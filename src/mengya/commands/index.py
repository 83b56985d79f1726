"""mengya index --kb NAME FILE…: documents into a knowledge base."""

import dataclasses
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mengya.commands import Command
from mengya.errors import UserError
from mengya.schema import Argument, config

if TYPE_CHECKING:
    from mengya.rag.store import Embedder, KnowledgeBase

_LEFT_BEHIND = re.compile(r"~\$|(?:Thumbs\.db|desktop\.ini)$", re.IGNORECASE)
"""Files of Office while another one is open, and of Windows."""
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
    found = _found(config.files, config.folder)
    failed = _add(base, found, embedder)
    for name in _gone(base, config.files, found):
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


def _found(given: list[str], bases: Path) -> list[Path]:
    """The files, and those in the folders, without hidden ones, what programs leave there, and the bases themselves.
    UserError for what is not there."""
    from mengya.metrics import say
    from mengya.rag.reading.names import name_of

    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                hidden = any(part[0] == "." for part in file.relative_to(path).parts)
                if hidden or _LEFT_BEHIND.match(file.name) or bases.resolve() in file.absolute().parents:
                    continue
                if file.is_file():
                    found.append(file)
                elif file.is_symlink():
                    say(f"? {name_of(file)}  leads to what is not a file; name the folder that it leads to")
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path} is neither a file nor a folder")
    return found


def _gone(base: "KnowledgeBase", given: list[str], found: list[Path]) -> list[str]:
    """Files of the base that came from one of these folders, and are not there now: renamed, moved or deleted."""
    from mengya.rag.reading.names import name_of

    folders = [Path(name) for name in given if Path(name).is_dir()]
    there = set(map(name_of, found))
    names = [file.name for file in base.files() if file.name not in there]
    return [name for name in names if any(_is_inside(name, folder) for folder in folders)]


def _is_inside(name: str, folder: Path) -> bool:
    from mengya.rag.reading.names import name_of

    return not name.startswith(("/", "../")) if folder == Path() else name.startswith(name_of(folder) + "/")


def _add(base: "KnowledgeBase", files: list[Path], embedder: "Embedder | None") -> int:
    """How many could not be added."""
    from mengya.metrics import say
    from mengya.rag.document import notes_of
    from mengya.rag.reading.names import name_of
    from mengya.rag.reading.worker import read_file, reading_of

    failed = 0
    for number, path in enumerate(files, 1):
        name = name_of(path)
        try:
            content = reading_of(path)
            if base.holds(name, content, embedder):
                say(f"= {name}")
                continue
            document = base.parsed(content)
            if document is None:
                document = read_file(path, name, progress=_Pages(f"{number}/{len(files)} {name}"))
            change = base.add(dataclasses.replace(document, name=name), content, embedder)
        except UserError as error:  # the other files are wanted still
            failed += 1
            say(f"! {error}")
            continue
        except OSError as error:
            failed += 1
            say(f"! {name}: it cannot be opened ({error.strerror}); check its rights, and whether it is there")
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
