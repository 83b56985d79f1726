"""Conversations on disk, in SQLite. Everything belongs to an owner, and every query names one.

The messages of a conversation are a tree: a question that is edited and an answer that is written again stand beside
the earlier ones. `leaf` is the message that the branch in sight ends with.
"""

import contextlib
import json
import secrets
import sqlite3
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mengya.errors import UserError
from mengya.rag.reading.names import without_unseen
from mengya.rag.terms import scripts
from mengya.text.thoughts import split_thoughts

State = Literal["done", "answering", "stopped", "error"]
TITLE = 80
"""Characters of a title, at most."""
_SEARCH = 200
"""Characters of a search that are looked for: SQLite takes no more words than a few hundred."""
_BUSY = 30.0
"""Seconds that a statement waits for other writers."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS conversations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    leaf TEXT, settings TEXT NOT NULL DEFAULT '{}', renamed REAL NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS conversations_owner ON conversations (owner, updated);
CREATE TABLE IF NOT EXISTS messages (
    id TEXT PRIMARY KEY, conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    parent TEXT, role TEXT NOT NULL, text TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL,
    info TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE IF NOT EXISTS pictures (
    id TEXT PRIMARY KEY, conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    name TEXT NOT NULL, data BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS ended (session TEXT PRIMARY KEY, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS messages_conversation ON messages (conversation, created);
"""


@dataclass(frozen=True)
class Message:
    id: str
    parent: str | None
    """The message that it follows; None: the first."""
    role: Literal["user", "assistant"]
    text: str
    """As it was written: of an answer with what was thought."""
    state: State
    created: float
    """Seconds since 1970."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Of an answer: model, tokens, seconds, error, sources."""


@dataclass(frozen=True)
class Conversation:
    id: str
    title: str
    created: float
    updated: float
    leaf: str | None
    settings: Mapping[str, Any]
    renamed: float = 0.0
    """When somebody gave it its title; 0: nobody has."""
    messages: tuple[Message, ...] = ()
    """All branches, in the order in which they were written."""

    def branch(self) -> list[Message]:
        """From the first message to the leaf."""
        known = {message.id: message for message in self.messages}
        found: list[Message] = []
        here = known.get(self.leaf or "")
        while here is not None:
            found.append(here)
            here = known.get(here.parent or "")
        return found[::-1]

    def beside(self, message: Message) -> list[str]:
        """The ids of the messages in its place, itself among them."""
        return [m.id for m in self.messages if m.parent == message.parent and m.role == message.role]

    def end_of(self, message: str) -> str:
        """The leaf of the branch that was last written on from a message."""
        latest = {m.parent: m.id for m in self.messages}
        while message in latest:  # whatever the times say: clocks are set back, and a backup holds any
            message = latest[message]
        return message


def new_id() -> str:
    """That nobody guesses."""
    return secrets.token_urlsafe(16)


class Missing(UserError):
    """Nothing of that id, or not the owner's: which of both is not told."""

    def __init__(self) -> None:
        super().__init__("there is no such conversation; it may have been deleted")


class Store:
    """All methods may be called from any thread: each call has a connection of its own."""

    def __init__(self, path: Path):
        """UserError if the file cannot be opened or is none of ours. Answers that a crash broke off are marked as
        stopped."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._anchor = self._connect()  # the last connection that closes would move the log into the file
            with self.write() as db:
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                if not any(row["name"] == "renamed" for row in db.execute("PRAGMA table_info(conversations)")):
                    db.execute("ALTER TABLE conversations ADD COLUMN renamed REAL NOT NULL DEFAULT 0")  # an older file
                db.execute("UPDATE messages SET state = 'stopped' WHERE state = 'answering'")
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{path} cannot be opened ({error}); choose another directory with --data") from error

    def close(self) -> None:
        self._anchor.close()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        try:
            db.row_factory = sqlite3.Row
            db.create_function("holds", 2, _holds, deterministic=True)
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise UserError(f"{self._path} cannot be shared by many readers here ({mode}); use a local disk")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            db.close()
            raise
        return db

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that has the right to write from its beginning: all of it happens, or nothing."""
        with contextlib.closing(self._connect()) as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
                    db.execute("ROLLBACK")
                raise

    def read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with contextlib.closing(self._connect()) as db:
            return db.execute(query, values).fetchall()

    # --- conversations -------------------------------------------------------------------------------------------

    def all(self, owner: str, search: str = "") -> list[Conversation]:
        """The last written first, without messages; those with all words of `search` in the title or in a message."""
        query, values = "SELECT * FROM conversations c WHERE owner = ?", [owner]
        for word in _wanted(search):
            query += (
                " AND (holds(title, ?) OR EXISTS (SELECT 1 FROM messages m WHERE m.conversation = c.id"
                " AND holds(coalesce(json_extract(m.info, '$.plain'), m.text), ?)))"
            )
            values += [word] * 2
        return [_conversation(row) for row in self.read(query + " ORDER BY updated DESC, id", *values)]

    def get(self, owner: str, conversation: str) -> Conversation:
        """With its messages. Missing."""
        rows = self.read("SELECT * FROM conversations WHERE id = ? AND owner = ?", conversation, owner)
        if not rows:
            raise Missing
        messages = self.read("SELECT * FROM messages WHERE conversation = ? ORDER BY created, rowid", conversation)
        return _conversation(rows[0], tuple(_message(row) for row in messages))

    def create(self, owner: str, title: str, settings: Mapping[str, Any]) -> str:
        made, now = new_id(), time.time()
        with self.write() as db:
            db.execute(
                "INSERT INTO conversations (id, owner, title, created, updated, settings) VALUES (?, ?, ?, ?, ?, ?)",
                (made, owner, title_of(title) or "…", now, now, _json(settings)),
            )
        return made

    def rename(self, owner: str, conversation: str, title: str) -> None:
        """UserError for an empty title; Missing."""
        if not title_of(title):
            raise UserError("the title is empty; write one")
        self._change(owner, conversation, f"renamed = {time.time()!r}, title = ?", title_of(title))

    def entitle(self, owner: str, conversation: str, text: str) -> None:
        """By what is asked there, as long as nobody has said otherwise."""
        self._change(owner, conversation, "title = iif(renamed, title, ?)", title_of(text))

    def choose(self, owner: str, conversation: str, leaf: str) -> None:
        """The branch in sight."""
        self._change(owner, conversation, "leaf = ?", leaf)

    def set(self, owner: str, conversation: str, settings: Mapping[str, Any]) -> None:
        self._change(owner, conversation, "settings = ?", _json(settings))

    def _change(self, owner: str, conversation: str, what: str, value: Any) -> None:
        with self.write() as db:
            query = f"UPDATE conversations SET {what} WHERE id = ? AND owner = ?"
            if not db.execute(query, (value, conversation, owner)).rowcount:
                raise Missing

    def delete(self, owner: str, conversation: str) -> None:
        with self.write() as db:
            query = "DELETE FROM conversations WHERE id = ? AND owner = ?"
            if not db.execute(query, (conversation, owner)).rowcount:
                raise Missing

    # --- messages --------------------------------------------------------------------------------------------------

    def add(self, owner: str, conversation: str, messages: Sequence[Message]) -> None:
        """Each follows one that is there; the last is the leaf. Missing."""
        with self.write() as db:
            query = "UPDATE conversations SET updated = ?, leaf = ? WHERE id = ? AND owner = ?"
            last = messages[-1]
            if not db.execute(query, (last.created, last.id, conversation, owner)).rowcount:
                raise Missing
            for message in messages:
                insert(db, conversation, message)

    def message(self, owner: str, message: str) -> Message | None:
        query = "SELECT * FROM messages WHERE id = ? AND conversation IN (SELECT id FROM conversations WHERE owner = ?)"
        return next((_message(row) for row in self.read(query, message, owner)), None)

    def save(self, owner: str, message: str, text: str, state: State, info: Mapping[str, Any]) -> None:
        """What an answer has become. Nothing if it was deleted meanwhile."""
        with self.write() as db:
            db.execute(
                "UPDATE messages SET text = ?, state = ?, info = ? WHERE id = ? AND conversation IN "
                "(SELECT id FROM conversations WHERE owner = ?)",
                (text, state, _json(_with_plain(text, info)), message, owner),
            )


def in_words(error: sqlite3.Error) -> str:
    """What is wrong with the conversations on disk, and what to do."""
    message = str(error)
    if "locked" in message or "busy" in message:
        return "another process has been writing to the conversations for long; try again"
    if "full" in message:
        return "the disk with the conversations is full; free space, then try again"
    return f"the conversations cannot be read or written ({message}); look at their folder, or try again"


def insert(db: sqlite3.Connection, conversation: str, message: Message) -> None:
    info = message.info if message.role == "user" else _with_plain(message.text, message.info)
    db.execute(
        "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            message.id, conversation, message.parent, message.role, message.text, message.state, message.created,
            _json(info),
        ),
    )  # fmt: skip


def finish(db: sqlite3.Connection, message: Message) -> None:
    """What an answer has become, in the place of what it was."""
    info = _json(_with_plain(message.text, message.info))
    query = "UPDATE messages SET text = ?, state = ?, info = ? WHERE id = ?"
    db.execute(query, (message.text, message.state, info, message.id))


def found_in(conversation: Conversation, search: str) -> Message | None:
    """The message with most words of a search: one of the branch in sight if it has as many as any, else the last. None
    if no message has any."""
    words, shown = _wanted(search), {message.id for message in conversation.branch()}

    def rank(message: Message) -> tuple[int, bool]:
        text = message.text if message.role == "user" else split_thoughts(message.text)[1]
        return sum(_holds(text, word) for word in words), message.id in shown

    best = max(reversed(conversation.messages), key=rank, default=None)
    return best if best is not None and rank(best)[0] else None


def _wanted(search: str) -> list[str]:
    """The words of a search, each in all its ways of writing, as `_holds` takes them."""
    return ["\0".join(scripts(word)) for word in _folded(search[:_SEARCH]).replace("\0", " ").split()]


def _folded(text: str) -> str:
    """Without what wide letters, large ones and composed ones differ by."""
    return unicodedata.normalize("NFKC", text).casefold()


def _holds(text: str, words: str) -> bool:
    """Whether one of the words stands in a text."""
    folded = _folded(text)
    return any(word in folded for word in words.split("\0"))


def title_of(text: str) -> str:
    """A text on one line, cut, without what is not seen; "" if nothing is left."""
    line = without_unseen(" ".join(text.split())).strip()
    return line if len(line) <= TITLE else line[: TITLE - 1] + "…"


def _with_plain(text: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """With the answer alone, where something was thought: that is what is searched."""
    thought, answer = split_thoughts(text)
    kept = {name: value for name, value in info.items() if name != "plain"}
    return kept | {"plain": answer} if thought else kept


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), ensure_ascii=False)


def _conversation(row: sqlite3.Row, messages: tuple[Message, ...] = ()) -> Conversation:
    names = ("id", "title", "created", "updated", "leaf", "renamed")
    return Conversation(**{n: row[n] for n in names}, settings=json.loads(row["settings"]), messages=messages)


def _message(row: sqlite3.Row) -> Message:
    names = ("id", "parent", "role", "text", "state", "created")
    info = {name: value for name, value in json.loads(row["info"]).items() if name != "plain"}
    return Message(**{n: row[n] for n in names}, info=info)
