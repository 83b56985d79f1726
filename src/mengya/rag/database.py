"""The SQLite file of a knowledge base: its tables, and how every connection to it is made and told of."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mengya.errors import UserError

FORMAT = 1
"""Of the tables below; another one is not read."""
BUSY = 30.0
"""Seconds that are waited for another process that writes."""
# Words have spaces between them already; of ASCII, "ascii" keeps what else belongs to a term.
TABLES = f"""
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL, hash TEXT NOT NULL,
    added REAL NOT NULL, report TEXT NOT NULL, document TEXT NOT NULL
);
CREATE INDEX files_hash ON files (hash);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER NOT NULL REFERENCES files, number INTEGER NOT NULL,
    text TEXT NOT NULL, headings TEXT NOT NULL, pieces TEXT NOT NULL, UNIQUE (file, number)
);
CREATE VIRTUAL TABLE search USING fts5 (words, grams, title, tokenize = "ascii tokenchars '+#%'");
CREATE TABLE vectors (passage INTEGER PRIMARY KEY REFERENCES passages, vector BLOB NOT NULL);
PRAGMA user_version = {FORMAT};
"""


def connect(path: Path, *, new: bool = False) -> sqlite3.Connection:
    """`new`: make the file if there is none."""
    address = f"{path.absolute().as_uri()}?mode={'rwc' if new else 'rw'}"
    db = sqlite3.connect(address, uri=True, timeout=BUSY, isolation_level=None)
    db.execute(f"PRAGMA busy_timeout = {round(BUSY * 1000)}")
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        db.close()
        raise UserError(
            f"{path.parent} cannot hold a database that many use; choose a folder on a disk of this machine"
        )
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA secure_delete = ON")
    return db


@contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """One transaction: all of it or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if db.in_transaction:  # a full disk has ended it already
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextmanager
def told(name: str) -> Iterator[None]:
    """Faults of the disk and of other processes, in words."""
    try:
        yield
    except sqlite3.OperationalError as error:
        message = str(error)
        if "locked" in message or "busy" in message:
            raise UserError(f"knowledge base {name}: another process has been writing for long; try again") from error
        if "full" in message:
            raise UserError(f"knowledge base {name}: the disk is full; free space, then try again") from error
        if "readonly" in message or "unable to open" in message:
            raise UserError(f"knowledge base {name} cannot be opened ({message}); check its folder's rights") from error
        raise
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:
            raise
        raise UserError(f"knowledge base {name} is damaged ({error}); delete it and index its files again") from error
