"""Knowledge bases on disk: one SQLite file each, in one folder. Names are text in it and never part of a path.

A file of a base, its passages, what they are searched by and their vectors come and go in one transaction: whatever
stops the process, a file is there whole or not at all.
"""

import hashlib
import json
import sqlite3
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mengya.errors import UserError
from mengya.rag import database
from mengya.rag.database import FORMAT, TABLES
from mengya.rag.document import Block, Document, Page
from mengya.rag.numbers import numbers
from mengya.rag.passages import Passage, Piece, cut
from mengya.rag.terms import normal, searched

_LONGEST_NAME = 255
_SUFFIX = ".sqlite3"
Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts -> (texts, C) float32 vectors of unit length."""


class UnknownBase(UserError):
    """There is no knowledge base of this name."""


class Embedder(NamedTuple):
    """What makes vectors of passages and of questions."""

    name: str
    """Tells its vectors from those of another."""
    embed: Embed


class Vectors(NamedTuple):
    embedder: str | None
    """Whose they are."""
    passages: np.ndarray
    """(N,) ids."""
    matrix: np.ndarray
    """(N, C), of unit length."""


@dataclass(frozen=True)
class StoredFile:
    name: str
    hash: str
    added: float
    """Seconds since 1970."""
    passages: int
    pages: tuple[Page, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class StoredPassage:
    id: int
    file: str
    """Its name."""
    number: int
    """In its file, from 0."""
    passage: Passage


class KnowledgeFolder:
    """The knowledge bases of one folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._opened: dict[Path, KnowledgeBase] = {}
        """By path: each keeps its vectors, which take a while to read."""

    def names(self) -> list[str]:
        """Of those that can be read, sorted."""
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with suppress(UserError):  # opening the damaged one by its name tells why
                found.append(KnowledgeBase(path).name)
        return sorted(found)

    def bases(self) -> "list[KnowledgeBase]":
        """Those that can be read, by name."""
        return [self.open(name) for name in self.names()]

    def open(self, name: str) -> "KnowledgeBase":
        """UnknownBase."""
        path = self._path(name)
        if not path.is_file():
            raise _unknown(name)
        base = KnowledgeBase(path)
        known = self._opened.get(path)
        if known is None or known.name != base.name:
            known = self._opened[path] = base
        return known

    def open_or_create(self, name: str) -> "KnowledgeBase":
        path = self._path(name)
        with database.told(name):
            self._folder.mkdir(parents=True, exist_ok=True)
            with closing(database.connect(path, new=True)) as db:
                if not _version(db):  # one that is there is opened even while another process writes to it
                    _fill(db, name)
        return KnowledgeBase(path)

    def remove(self, name: str) -> None:
        """With all that is in it. UnknownBase."""
        path = self._path(name)
        if not path.is_file():
            raise _unknown(name)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        key = _key(name)
        if not key.strip() or len(key) > _LONGEST_NAME:
            raise UserError(f"a knowledge base has a name of 1 to {_LONGEST_NAME} characters, not {name[:100]!r}")
        return self._folder / (hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32] + _SUFFIX)


class KnowledgeBase:
    """Files and their passages. May be used from any thread, and by several processes at once."""

    def __init__(self, path: Path):
        self.path = path
        self._kept: tuple[tuple, Vectors] | None = None
        self.name: str = path.name
        with self._reading() as db:
            version = _version(db)
            if version == 0:  # another process has made the file, and not yet what is in it
                raise UnknownBase(f"{path} is no knowledge base yet; index its files")
            if version != FORMAT:
                raise UserError(f"{path} is no knowledge base of this version of mengya; index its files again")
            self.name = db.execute("SELECT value FROM about WHERE key = 'name'").fetchone()[0]

    def files(self) -> list[StoredFile]:
        """In the order in which they were added."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT name, hash, added, (SELECT count(*) FROM passages WHERE file = files.id), report FROM files "
                "ORDER BY id"
            ).fetchall()
        return [StoredFile(*about, *_reported(report)) for *about, report in rows]  # type: ignore[call-arg]

    def holds(self, name: str, hash: str, embedder: Embedder | None = None) -> bool:
        """Whether the file of this name is there as it is now read (`reading_of`), with vectors if they are wanted."""
        with self._reading() as db:
            return _holds(db, name, hash, embedder)

    def parsed(self, hash: str) -> Document | None:
        """What was read so, under whatever name."""
        with self._reading() as db:
            row = db.execute("SELECT document FROM files WHERE hash = ? LIMIT 1", (hash,)).fetchone()
        return row and _document(row[0])

    def document(self, name: str) -> Document | None:
        """What was read of a file."""
        with self._reading() as db:
            row = db.execute("SELECT document FROM files WHERE key = ?", (_key(name),)).fetchone()
        return row and _document(row[0])

    def add(
        self, document: Document, hash: str, embedder: Embedder | None = None, *, added: float | None = None
    ) -> Literal["new", "changed", "same"]:
        """Add a file, in place of the one of its name. `hash`: `reading_of` it; `added`: when, if not now. UserError,
        and no change, if no text was found in it, or the base has vectors of another embedder."""
        document = _document(_as_json(asdict(document)))  # as it will be read again: halves of characters are gone
        if not document.name.strip():
            raise UserError("a file in a knowledge base needs a name; give one")
        passages = cut(document)
        if not passages:
            raise UserError(_no_text(document))
        rows = [(p, _search_row(p, document.name)) for p in passages]  # before anybody has to wait
        vectors = embedder.embed([_embedded(p) for p in passages]) if embedder else None
        when = time.time() if added is None else added
        with self._writing() as db:
            if _holds(db, document.name, hash, embedder):
                return "same"
            _check_embedder(db, embedder)
            known = _delete(db, document.name)
            about = {"pages": [asdict(page) for page in document.pages], "notes": document.notes}
            file = db.execute(
                "INSERT INTO files (key, name, hash, added, report, document) VALUES (?, ?, ?, ?, ?, ?)",
                (_key(document.name), document.name, hash, when, _as_json(about), _as_json(asdict(document))),
            )
            for number, (passage, searched) in enumerate(rows):
                row = db.execute(
                    "INSERT INTO passages (file, number, text, headings, pieces) VALUES (?, ?, ?, ?, ?)",
                    (file.lastrowid, number, passage.text, _as_json(passage.headings), _as_json(passage.pieces)),
                )
                db.execute(
                    "INSERT INTO search (rowid, words, grams, title) VALUES (?, ?, ?, ?)", (row.lastrowid, *searched)
                )
                if vectors is not None:
                    vector = np.asarray(vectors[number], "<f4").tobytes()
                    db.execute("INSERT INTO vectors VALUES (?, ?)", (row.lastrowid, vector))
        return "changed" if known else "new"

    def remove(self, name: str) -> bool:
        """A file and all that was made of it; False if there is none of this name."""
        with self._writing() as db:
            known = _delete(db, name)
            if known:
                db.execute("INSERT INTO search (search) VALUES ('optimize')")  # the index holds no word of it any more
        return known

    def passages(self, ids: Sequence[int]) -> list[StoredPassage]:
        """Those of these ids that are there still, in this order."""
        marks = ", ".join("?" * len(ids))
        found = {passage.id: passage for passage in self._select(f"passages.id IN ({marks})", ids)}
        return [found[number] for number in ids if number in found]

    def passages_of(self, file: str) -> list[StoredPassage]:
        """All of one file, in order."""
        return self._select("files.key = ?", (_key(file),))

    def _select(self, where: str, values: Sequence[object]) -> list[StoredPassage]:
        with self._reading() as db:
            rows = db.execute(
                "SELECT passages.id, files.name, number, text, headings, pieces FROM passages "
                f"JOIN files ON files.id = passages.file WHERE {where} ORDER BY files.id, number",
                values,
            ).fetchall()
        return [StoredPassage(id, file, number, _passage(*stored)) for id, file, number, *stored in rows]

    def search(self, expression: str, limit: int) -> list[tuple[int, float]]:
        """(passage, score), the best first, of an expression of FTS5."""
        with self._reading() as db:
            return db.execute(
                "SELECT rowid, -bm25(search, 1, 1, 0.5) AS score FROM search WHERE search MATCH ? "
                "ORDER BY score DESC LIMIT ?",
                (expression, limit),
            ).fetchall()

    def check(self, embedder: Embedder) -> None:
        """UserError if the base has vectors of another one. It may have none: its words are enough."""
        with self._reading() as db:
            if db.execute("SELECT 1 FROM vectors LIMIT 1").fetchone() and _embedder_of(db) != embedder.name:
                raise UserError(_other_vectors(f"the knowledge base {self.name}", _embedder_of(db), embedder))

    def vectors(self) -> Vectors:
        """All of them, kept in memory until the base changes."""
        with self._reading() as db:
            # Passages are numbered on and on, so a change shows here; and so does another base in the same place.
            files = "(SELECT count(*) FROM files), (SELECT max(added) FROM files)"
            last = db.execute(f"SELECT max(seq), {files} FROM sqlite_sequence").fetchone()
            if self._kept is None or self._kept[0] != last:
                rows = db.execute("SELECT passage, vector FROM vectors ORDER BY passage").fetchall()
                matrix = np.frombuffer(b"".join(row[1] for row in rows), "<f4")
                ids = np.array([row[0] for row in rows], np.int64)
                self._kept = last, Vectors(_embedder_of(db), ids, matrix.reshape(len(rows), -1 if rows else 0))
        return self._kept[1]

    def counts(self) -> dict[str, int]:
        """Rows of each table."""
        with self._reading() as db:
            tables = ("files", "passages", "search", "vectors")
            return {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if not self.path.is_file():  # somebody has removed it
            raise _unknown(self.name)
        with database.told(self.name), closing(database.connect(self.path)) as db:
            yield db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db, database.writing(db):
            yield db


def _unknown(name: str) -> UnknownBase:
    return UnknownBase(f"there is no knowledge base {name[:100]!r}; make it with mengya index")


def _version(db: sqlite3.Connection) -> int:
    """0: nothing is in it yet."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _fill(db: sqlite3.Connection, name: str) -> None:
    """The tables of a new base, unless another process has made them meanwhile."""
    with database.writing(db):
        if not _version(db):
            for statement in TABLES.strip().rstrip(";").split(";\n"):
                db.execute(statement)
            db.execute("INSERT INTO about VALUES ('name', ?)", (name,))


def _key(name: str) -> str:
    """Names that look the same are the same."""
    return unicodedata.normalize("NFC", name)


def _holds(db: sqlite3.Connection, name: str, hash: str, embedder: Embedder | None) -> bool:
    row = db.execute("SELECT id FROM files WHERE key = ? AND hash = ?", (_key(name), hash)).fetchone()
    if row is None or embedder is None:
        return row is not None
    missing = db.execute(
        "SELECT 1 FROM passages WHERE file = ? AND id NOT IN (SELECT passage FROM vectors) LIMIT 1", row
    ).fetchone()
    return missing is None and _embedder_of(db) == embedder.name


def _embedder_of(db: sqlite3.Connection) -> str | None:
    row = db.execute("SELECT value FROM about WHERE key = 'embedder'").fetchone()
    return row and row[0]


def _check_embedder(db: sqlite3.Connection, embedder: Embedder | None) -> None:
    """Remembers the first embedder of a base. UserError for another."""
    if embedder is None:
        return
    if not db.execute("SELECT 1 FROM vectors LIMIT 1").fetchone():
        db.execute("INSERT OR REPLACE INTO about VALUES ('embedder', ?)", (embedder.name,))
    elif (known := _embedder_of(db)) != embedder.name:
        raise UserError(_other_vectors("the knowledge base", known, embedder))


def _other_vectors(base: str, known: str | None, embedder: Embedder) -> str:
    return f"{base} has vectors of {known}, not of {embedder.name}; use that one, or index its files into another base"


def _delete(db: sqlite3.Connection, name: str) -> bool:
    row = db.execute("SELECT id FROM files WHERE key = ?", (_key(name),)).fetchone()
    if row is None:
        return False
    own = "(SELECT id FROM passages WHERE file = ?)"
    db.execute(f"DELETE FROM vectors WHERE passage IN {own}", row)
    db.execute(f"DELETE FROM search WHERE rowid IN {own}", row)
    db.execute("DELETE FROM passages WHERE file = ?", row)
    db.execute("DELETE FROM files WHERE id = ?", row)
    return True


def _search_row(passage: Passage, name: str) -> tuple[str, str, str]:
    """Words and numbers; neighbours; and all of these of the headings and the file's name."""
    title = " \n".join((*passage.headings, name.rpartition(".")[0] or name))
    text, title = normal(passage.text).text, normal(title).text
    words, grams = searched(text)
    return " ".join([words, *numbers(text)]), grams, " ".join([*searched(title), *numbers(title)])


def _embedded(passage: Passage) -> str:
    return "\n".join((*passage.headings[-1:], passage.text))


def _no_text(document: Document) -> str:
    """Why a file is not added."""
    told = []
    for state, words in (("unread", "could not be read"), ("blank", "are blank")):
        pages = [str(page.number) for page in document.pages if page.state == state]
        told += [f"pages {', '.join(pages[:20])}{'…' * (len(pages) > 20)} {words}"] if pages else []
    told += document.notes
    return f"{document.name}: no text found" + (f" ({'; '.join(told)})" if told else "")


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()


def _document(stored: str) -> Document:
    fields = json.loads(stored)
    blocks = (block | {"rows": tuple(map(tuple, block["rows"]))} for block in fields["blocks"])
    made = {
        "blocks": tuple(Block(**block) for block in blocks),
        "pages": tuple(Page(**page) for page in fields["pages"]),
        "notes": tuple(fields["notes"]),
    }
    return Document(**(fields | made))


def _reported(stored: str) -> tuple[tuple[Page, ...], tuple[str, ...]]:
    fields = json.loads(stored)
    return tuple(Page(**page) for page in fields["pages"]), tuple(fields["notes"])


def _passage(text: str, headings: str, pieces: str) -> Passage:
    return Passage(text, tuple(json.loads(headings)), tuple(Piece(*piece) for piece in json.loads(pieces)))
