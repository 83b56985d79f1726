"""Documents of owners: named knowledge bases, and the files of each conversation. Files are read in the background.

A place is "base:NAME", "conversation:ID", or "shared:NAME" for what all may read and none may change here. Owners have
folders of their own, so that no name of one reaches the other.
"""

import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

from mengya.errors import UserError
from mengya.rag.document import Document, notes_of
from mengya.rag.passages import text_of
from mengya.rag.reading.addresses import read_address
from mengya.rag.reading.limits import Limits
from mengya.rag.reading.names import name_as_text, without_unseen
from mengya.rag.reading.worker import Progress, read_file, reading_of
from mengya.rag.store import Embedder, KnowledgeBase, KnowledgeFolder, StoredFile, UnknownBase
from mengya.serve.web.fairness import Turns
from mengya.serve.web.store import new_id

_READERS, _READERS_EACH = 3, 2
"""Files that are read at a time, in all and of one owner; others wait."""
_WAITING = 100
"""Files of one owner that wait or have failed."""
_AROUND = 1200
"""Characters before and behind a citation that are shown of a file without pages."""


@dataclass
class Job:
    """A file that is being read, or that could not be."""

    owner: str
    place: str
    name: str
    id: str = field(default_factory=new_id)
    state: Literal["waiting", "reading", "error"] = "waiting"
    done: int = 0
    pages: int = 0
    """Those that were read, and all; 0: not known."""
    error: str = ""
    cancelled: bool = False


class _Cancelled(Exception):
    pass


class Library:
    def __init__(
        self,
        folder: Path,
        limits: Limits,
        shared: KnowledgeFolder | None = None,
        *,
        addresses: bool = False,
        embedder: Embedder | None = None,
    ):
        """`folder`: for the bases, and for files until they are read. `shared`: bases that `mengya index` has made.
        `addresses`: whether what stands at a web address may be added, which the server fetches. `embedder`: of what is
        added."""
        self._folder, self.limits, self.addresses, self._embedder = folder, limits, addresses, embedder
        self._shared = shared
        self._jobs: dict[str, Job] = {}
        self._guard = threading.Lock()
        self._opening: WeakValueDictionary[tuple[str, str], threading.Lock] = WeakValueDictionary()
        self._readers = Turns(_READERS, _READERS_EACH)
        self.uploads = folder / "uploads"
        self.uploads.mkdir(parents=True, exist_ok=True)
        for left in self.uploads.iterdir():  # by a crash
            left.unlink()

    # --- bases -----------------------------------------------------------------------------------------------------

    def places(self, owner: str) -> list[str]:
        """Of the named bases."""
        own = [f"base:{name}" for name in self._named(owner).names()]
        return own + [f"shared:{name}" for name in (self._shared.names() if self._shared else ())]

    def make(self, owner: str, name: str) -> None:
        if not without_unseen(name).strip():
            raise UserError("the name is empty; write one")
        name = name_as_text(name)
        if f"base:{name}" in self.places(owner):
            raise UserError(f"there is a knowledge base {name} already; choose another name")
        with self._alone(owner, f"base:{name}"):
            self._named(owner).open_or_create(name)

    def base(self, owner: str, place: str) -> KnowledgeBase:
        """UnknownBase, also of a conversation that has no files."""
        kind, _, name = place.partition(":")
        if kind == "shared" and self._shared is not None:
            return self._shared.open(name)
        folder, name = self._at(owner, place)
        with self._alone(owner, place):
            return folder.open(name)

    def filled(self, owner: str, place: str) -> KnowledgeBase | None:
        """One that has files."""
        with suppress(UnknownBase):
            base = self.base(owner, place)
            return base if base.files() else None
        return None

    def remove(self, owner: str, place: str) -> None:
        """A whole base. Nothing if there is none."""
        for job in self.jobs(owner, place):
            self.cancel(owner, job.id)
        folder, name = self._at(owner, place)
        with self._alone(owner, place), suppress(UnknownBase):
            folder.remove(name)

    def _alone(self, owner: str, place: str) -> threading.Lock:
        """Held while a base is made or opened, so that nobody opens a half of one."""
        with self._guard:
            return self._opening.setdefault((owner, place), threading.Lock())

    def _at(self, owner: str, place: str) -> tuple[KnowledgeFolder, str]:
        """Where what the owner may change is."""
        kind, _, name = place.partition(":")
        if kind not in ("base", "conversation") or not name:
            raise UserError(f"{place[:100]} is no place for files")
        return (self._named(owner) if kind == "base" else KnowledgeFolder(self._own(owner) / "conversations")), name

    def _named(self, owner: str) -> KnowledgeFolder:
        return KnowledgeFolder(self._own(owner) / "bases")

    def _own(self, owner: str) -> Path:
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:32]

    # --- files -----------------------------------------------------------------------------------------------------

    def files(self, owner: str, place: str) -> dict[str, Any]:
        """Those of a place, and those that are being read."""
        jobs = [  # before the files: one that is kept meanwhile is in both, not in neither
            {"id": j.id, "name": j.name, "state": j.state, "done": j.done, "pages": j.pages, "error": j.error}
            for j in self.jobs(owner, place)
        ]
        try:
            stored = self.base(owner, place).files()
        except UnknownBase:
            stored = []
        return {"files": [_told(file) for file in stored], "jobs": jobs}

    def remove_file(self, owner: str, place: str, name: str) -> None:
        folder, base = self._at(owner, place)
        if not folder.open(base).remove(name):
            raise UserError(f"there is no file {name[:100]} here; it may have been removed")

    def add(self, owner: str, place: str, name: str, path: Path) -> str:
        """Take the file at `path`, and read it. The id of the job; UserError, and the file stays where it is, if too
        many wait or there is no such place."""
        job = self._job(owner, place, name_as_text(name))
        path = path.rename(path.with_name(job.id))
        self._begin(job, lambda progress: self._file(job, path, progress), lambda: path.unlink(missing_ok=True))
        return job.id

    def add_address(self, owner: str, place: str, url: str) -> str:
        """Read what stands at a web address, as `add`."""
        if not self.addresses:
            raise UserError("this server fetches no web addresses; save the page, and add the file")
        job = self._job(owner, place, name_as_text(url.strip()))
        self._begin(job, lambda progress: self._address(job, progress), lambda: None)
        return job.id

    def check(self, owner: str) -> None:
        """UserError if a base of the owner takes no more files: it has vectors of another embedder."""
        if self._embedder is not None:
            for name in self._named(owner).names():
                self._named(owner).open(name).check(self._embedder)

    def restore(self, owner: str, place: str, document: Document, digest: str, added: float) -> bool:
        """Add what was read of a file earlier; False if there is the same or a newer one of its name."""
        folder, name = self._at(owner, place)
        with self._alone(owner, place):
            base = folder.open_or_create(name)
        there = next((file for file in base.files() if file.name == document.name), None)
        if there is not None and (there.hash == digest or there.added >= added):
            return False
        base.add(document, digest, self._embedder, added=added)
        return True

    def _job(self, owner: str, place: str, name: str) -> Job:
        self._at(owner, place)
        if sum(job.owner == owner for job in list(self._jobs.values())) >= _WAITING:
            raise UserError(f"{_WAITING} files are waiting or have failed already; wait, or clear those")
        return Job(owner, place, name)

    def _begin(self, job: Job, read: Callable[[Progress], None], end: Callable[[], None]) -> None:
        self._jobs[job.id] = job
        threading.Thread(target=self._work, args=(job, read, end), name=f"file {job.id}", daemon=True).start()

    def jobs(self, owner: str, place: str) -> list[Job]:
        return [job for job in list(self._jobs.values()) if (job.owner, job.place) == (owner, place)]

    def cancel(self, owner: str, job: str) -> None:
        """Stop reading a file, or forget that it could not be read."""
        found = self._jobs.get(job)
        if found is not None and found.owner == owner:
            found.cancelled = True
            self._jobs.pop(job, None)

    def wait(self, owner: str, place: str, going: Callable[[], bool]) -> None:
        """Until its files are read, or `going` says no."""
        while going() and any(job.state != "error" for job in self.jobs(owner, place)):
            time.sleep(0.05)

    def close(self) -> None:
        for job in list(self._jobs.values()):
            job.cancelled = True

    def _work(self, job: Job, read: Callable[[Progress], None], end: Callable[[], None]) -> None:
        def progress(done: int, pages: int) -> None:
            job.done, job.pages = done, pages
            if job.cancelled:
                raise _Cancelled

        try:
            with self._readers.taken(job.owner, lambda: progress(0, 0)):
                progress(0, 0)
                job.state = "reading"
                read(progress)
            self._jobs.pop(job.id, None)
        except _Cancelled:
            self._jobs.pop(job.id, None)
        except UserError as error:
            job.state, job.error = "error", str(error)
        except Exception as error:
            job.state, job.error = "error", f"{job.name} could not be read ({type(error).__name__}); try again"
            raise
        finally:
            end()

    def _file(self, job: Job, path: Path, progress: Progress) -> None:
        digest = reading_of(path)
        base = self._made(job)
        if base.holds(job.name, digest, self._embedder):
            return
        known = base.parsed(digest)
        document = replace(known, name=job.name) if known else read_file(path, job.name, self.limits, progress)
        self._keep(job, base, document, digest, progress)

    def _address(self, job: Job, progress: Progress) -> None:
        document = read_address(job.name, self.limits, progress)
        digest = hashlib.sha256(text_of(document).encode()).hexdigest()
        self._keep(job, self._made(job), replace(document, name=job.name), digest, progress)

    def _made(self, job: Job) -> KnowledgeBase:
        folder, name = self._at(job.owner, job.place)
        with self._alone(job.owner, job.place):
            if job.cancelled:  # with its place, which stays deleted
                raise _Cancelled
            return folder.open_or_create(name)

    def _keep(self, job: Job, base: KnowledgeBase, document: Document, digest: str, progress: Progress) -> None:
        progress(job.done, job.pages)
        base.add(document, digest, self._embedder)
        if job.cancelled:  # with its place, perhaps
            base.remove(job.name)
            if job.place.startswith("conversation:") and not base.files():
                self.remove(job.owner, job.place)


def _told(file: StoredFile) -> dict[str, Any]:
    states = [page.state for page in file.pages]
    counts = {state: states.count(state) for state in ("ocr", "blank", "unread")}
    return {
        "name": file.name,
        "passages": file.passages,
        "pages": len(states),
        "notes": [*file.notes, *notes_of(file.pages)],
    } | counts


def passage_view(base: KnowledgeBase | None, source: dict[str, Any]) -> dict[str, Any]:
    """What a citation opens: its pages, or what stands around it, in paragraphs of [text, whether it is cited]. If the
    file is gone or another now: the passage as it was kept with the answer."""
    shown = {name: source.get(name) for name in ("file", "headings", "pages")}
    document = base.document(str(source.get("file"))) if base else None
    if document is not None:
        text = text_of(document)
        places = [(p["begin"], p["end"]) for p in source.get("places", ())]
        cited = "".join(text[begin:end] for begin, end in places)
        if places and _letters(cited) == _letters(str(source.get("quote"))):
            pages = {place.get("page") for place in source["places"]} - {None}
            paragraphs, begin = [], 0
            for block in document.blocks:
                end = begin + len(block.text)
                near = begin < places[-1][1] + _AROUND and end > places[0][0] - _AROUND
                if block.page in pages if pages else near:
                    paragraphs.append({"kind": block.kind, "parts": _parts(block.text, begin, places)})
                begin = end + 1
            return shown | {"gone": False, "paragraphs": paragraphs}
    kept, quote = str(source.get("text")), str(source.get("quote"))
    at = kept.find(quote)
    places = [(at, at + len(quote))] if at >= 0 and quote else []
    return shown | {"gone": True, "paragraphs": [{"kind": "text", "parts": _parts(kept, 0, places)}]}


def _letters(text: str) -> str:
    return "".join(text.split())


def _parts(text: str, at: int, places: list[tuple[int, int]]) -> list[tuple[str, bool]]:
    """`text`, which begins at `at`, cut where citations begin and end."""
    parts: list[tuple[str, bool]] = []
    last = 0
    for begin, end in sorted(places):
        first, behind = max(last, begin - at), min(len(text), end - at)
        if first < behind:
            parts += [(text[last:first], False), (text[first:behind], True)]
            last = behind
    return [part for part in [*parts, (text[last:], False)] if part[0]]
