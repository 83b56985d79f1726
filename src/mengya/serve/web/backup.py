"""Conversations out of the store and into it, as JSON. `archive` has the rest.

What comes in is anybody's file. It is merged by id and never replaces what is newer; what belongs to somebody else
gets ids of its own, the same ones each time.
"""

import base64
import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple, get_args

from mengya.errors import UserError
from mengya.infer.request import Sampling
from mengya.rag.reading.names import name_as_text
from mengya.serve.web.pictures import Picture, check
from mengya.serve.web.settings import Settings
from mengya.serve.web.store import Conversation, Message, State, Store, finish, insert, title_of
from mengya.text.json_text import whole_characters

FORMAT = "mengya-conversations-1"
NO_BACKUP = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading something else raises."""


class Merged(NamedTuple):
    id: str
    """Of the conversation now."""
    grown: bool
    """Whether it is new, or has something new."""


def as_json(conversations: list[Conversation]) -> dict[str, Any]:
    return {"conversations": [asdict(c) for c in conversations]}


def to_json(conversations: list[Conversation], pictures: Mapping[str, list[Picture]] | None = None) -> str:
    """`pictures`: by conversation."""
    rows = [
        {"conversation": name, "id": p.id, "name": p.name, "data": base64.b64encode(p.data).decode()}
        for name, each in (pictures or {}).items()
        for p in each
    ]
    return json.dumps({"format": FORMAT} | as_json(conversations) | {"pictures": rows}, ensure_ascii=False)


def parsed(text: str | bytes) -> Any:
    """JSON in which every text and number can be stored. ValueError or RecursionError otherwise."""
    return whole_characters(json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite))


def index(text: str | bytes, format: str) -> tuple[dict[str, Any], list[Conversation]]:
    """What a backup holds, its conversations read. UserError if it is none, with what is wrong."""
    try:
        given = parsed(text)
        found = str(given["format"])
        rows = list(given["conversations"]) if found == format else []
    except NO_BACKUP:
        raise UserError("this is no backup of conversations; give a file that was exported here") from None
    if found != format:
        told = f"this backup is of another format, {found[:40]}; this program reads {format}"
        newer = found.rpartition("-")[0] == format.rpartition("-")[0]
        raise UserError(f"{told}: update it" if newer else f"{told}: give the file as it was exported")
    return given, [_read(row) for row in rows]


def _read(row: Any) -> Conversation:
    try:
        return read_conversation(row)
    except NO_BACKUP:
        title = str(row.get("title") if isinstance(row, dict) else row)[:60]
        raise UserError(f"the conversation {title} in this backup is damaged; nothing was taken in") from None


def merge(store: Store, owner: str, text: str) -> int:
    """How many conversations are new or have grown. UserError if it is no backup; then nothing has changed."""
    given, found = index(text, FORMAT)
    pictures: dict[str, list[Picture]] = {}
    try:
        for row in given.get("pictures") or ():
            picture = Picture(id_of(row["id"]), name_as_text(text_of(row["name"])), base64.b64decode(row["data"]))
            check(picture.data, picture.name)
            pictures.setdefault(id_of(row["conversation"]), []).append(picture)
    except NO_BACKUP:
        raise UserError("a picture in this backup is damaged; nothing was taken in") from None
    merged = [merge_one(store, owner, conversation, pictures.get(conversation.id, ())) for conversation in found]
    return sum(each.grown for each in merged)


def merge_one(store: Store, owner: str, given: Conversation, pictures: Iterable[Picture] = ()) -> Merged:
    """In one transaction."""
    with store.write() as db:
        query = "SELECT owner, title, updated, renamed FROM conversations WHERE id = ?"
        owned = db.execute(query, (given.id,)).fetchone()
        other = _numbering(owner if owned is not None and owned["owner"] != owner else None)
        if owned is not None and owned["owner"] != owner:
            given = _renumbered(given, other)
            owned = db.execute(query, (given.id,)).fetchone()
        given = _with_ids_of_its_own(db, given)
        if owned is None:
            query = "INSERT INTO conversations (id, owner, title, created, updated) VALUES (?, ?, ?, ?, ?)"
            db.execute(query, (given.id, owner, given.title, given.created, given.updated))
        rows = db.execute("SELECT id, state FROM messages WHERE conversation = ?", (given.id,))
        present = {row["id"]: row["state"] for row in rows}
        grown = 0
        for message in _in_order(given, present):
            if message.id not in present:
                insert(db, given.id, message)
            elif message.state == "done" and present[message.id] in ("stopped", "error"):
                finish(db, message)  # it was still being written when it was taken in
            else:
                continue
            present[message.id] = message.state
            grown += 1
        for picture in pictures:
            row = (other(picture.id), given.id, picture.name, sqlite3.Binary(picture.data))
            grown += db.execute("INSERT OR IGNORE INTO pictures VALUES (?, ?, ?, ?)", row).rowcount
        if owned is not None and given.renamed > owned["renamed"]:
            query = "UPDATE conversations SET title = ?, renamed = ? WHERE id = ?"
            db.execute(query, (given.title, given.renamed, given.id))
            grown += 1
        elif owned is not None and given.renamed < owned["renamed"]:
            given = replace(given, title=owned["title"], renamed=owned["renamed"])
        if owned is None or given.updated > owned["updated"]:
            leaf = given.leaf if given.leaf in present else next(reversed(present), None)
            settings = json.dumps(given.settings, ensure_ascii=False)
            values = (given.title, given.renamed, given.created, given.updated, leaf, settings)
            columns = "title = ?, renamed = ?, created = ?, updated = ?, leaf = ?, settings = ?"
            db.execute(f"UPDATE conversations SET {columns} WHERE id = ?", (*values, given.id))
            grown += 1
        return Merged(given.id, grown > 0)


def _with_ids_of_its_own(db: sqlite3.Connection, given: Conversation) -> Conversation:
    """A message whose id another conversation has, as that of a copy has, gets another one, the same each time."""
    query = "SELECT 1 FROM messages WHERE id = ? AND conversation != ?"
    taken = {m.id for m in given.messages if db.execute(query, (m.id, given.id)).fetchone()}
    own = _numbering(given.id)

    def now(name: str | None) -> str | None:
        return own(name) if name in taken else name

    messages = tuple(replace(m, id=now(m.id), parent=now(m.parent)) for m in given.messages)  # type: ignore[arg-type]
    return replace(given, messages=messages, leaf=now(given.leaf))


def _in_order(given: Conversation, present: Collection[str]) -> list[Message]:
    """Each behind what it follows. What it follows may be missing: then it stands at the beginning. Circles are left
    out."""
    there = {m.id for m in given.messages} | set(present)
    left = [m if m.parent is None or m.parent in there else replace(m, parent=None) for m in given.messages]
    known, found = set(present), []
    while ready := [m for m in left if m.parent is None or m.parent in known]:
        found += ready
        known |= {m.id for m in ready}
        left = [m for m in left if m.id not in known]
    return found


def _numbering(owner: str | None) -> Callable[[str], str]:
    """id -> the one that an owner gets in its place; the same for None."""
    return lambda name: name if owner is None else hashlib.sha256(f"{owner}\n{name}".encode()).hexdigest()[:32]


def _renumbered(given: Conversation, other: Callable[[str], str]) -> Conversation:
    def info(message: Message) -> dict[str, Any]:
        changed = dict(message.info)
        if "pictures" in changed:
            changed["pictures"] = [picture | {"id": other(picture["id"])} for picture in changed["pictures"]]
        if "sources" in changed:
            changed["sources"] = [source | {"place": place(source["place"])} for source in changed["sources"]]
        return changed

    def place(name: str) -> str:
        return f"conversation:{other(given.id)}" if name == f"conversation:{given.id}" else name

    messages = tuple(
        replace(m, id=other(m.id), parent=m.parent and other(m.parent), info=info(m)) for m in given.messages
    )
    return replace(given, id=other(given.id), leaf=given.leaf and other(given.leaf), messages=messages)


def read_conversation(row: Any) -> Conversation:
    """ValueError if a value is not what it must be."""
    return Conversation(
        id=id_of(row["id"]),
        title=title_of(text_of(row["title"])) or "…",
        created=time_of(row["created"]),
        updated=time_of(row["updated"]),
        leaf=None if row.get("leaf") is None else id_of(row["leaf"]),
        settings=_settings(row.get("settings", {})),
        renamed=time_of(row.get("renamed", 0)),
        messages=tuple(_read_message(message) for message in row["messages"]),
    )


def _read_message(row: Any) -> Message:
    state, role = row["state"], row["role"]
    if state not in get_args(State) or role not in ("user", "assistant"):
        raise ValueError(state)
    return Message(
        id=id_of(row["id"]),
        parent=None if row.get("parent") is None else id_of(row["parent"]),
        role=role,
        text=text_of(row["text"]),
        state="stopped" if state == "answering" else state,
        created=time_of(row["created"]),
        info=_info(row.get("info", {})),
    )


def id_of(value: Any) -> str:
    if not (isinstance(value, str) and 8 <= len(value) <= 64 and value.replace("-", "").replace("_", "").isalnum()):
        raise ValueError("id")
    return value


def text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def _whole(digits: str) -> int:
    """A number that every reader of JSON takes."""
    if len(digits) > 20 or abs(int(digits)) >= 2**63:
        raise ValueError("number")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(float(digits)):
        raise ValueError("number")
    return float(digits)


def time_of(value: Any) -> float:
    """A time; one that is still to come is now, so that nothing stays newest for ever."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("time")
    return min(float(value), time.time())


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("object")
    return value


def _settings(value: Any) -> dict[str, Any]:
    """Those of them that can be used; none if one cannot."""
    try:
        return Settings.read(_object(value), Sampling()).kept()
    except UserError:
        return {}


_SOURCE = {
    "id": int, "file": str, "pages": list, "headings": list, "quote": str, "text": str, "places": list, "place": str,
    "knowledge_base": str,
}  # fmt: skip
_INFO = {"model": str, "tokens": int, "prompt_tokens": int, "seconds": int | float, "error": str, "kind": str}


_NAMES = ("absent", "unread", "unseen")


def _info(value: Any) -> dict[str, Any]:
    """What is known of an answer; ValueError if a source is none. One without a part that is not needed is one."""
    given = _object(value)
    told = {name: given[name] for name, kind in _INFO.items() if isinstance(given.get(name), kind)}
    told |= {name: [text_of(each) for each in given[name]] for name in _NAMES if given.get(name)}
    needless = {name: kind() for name, kind in _SOURCE.items() if name not in ("id", "file", "quote")}
    sources = [needless | source for source in given.get("sources") or []]
    for source in sources:
        if not all(isinstance(source[name], kind) for name, kind in _SOURCE.items()):
            raise ValueError("source")
        if not all(isinstance(place[name], int) for place in source["places"] for name in ("begin", "end")):
            raise ValueError("place")
    kept = [{name: source[name] for name in _SOURCE} for source in sources]
    shown = [{"id": id_of(p["id"]), "name": text_of(p["name"])} for p in given.get("pictures") or ()]
    return told | ({"sources": kept} if kept else {}) | ({"pictures": shown} if shown else {})
