"""Conversations out of the store and into it: as Markdown for people, as JSON for a machine. `archive` has the rest.

What comes in is anybody's file. It is merged by id and never replaces what is newer; what belongs to somebody else
gets ids of its own, the same ones each time.
"""

import hashlib
import json
import math
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple, get_args

from mengya.errors import UserError
from mengya.infer.request import Sampling
from mengya.serve.web.settings import Settings
from mengya.serve.web.store import Conversation, Message, State, Store, insert, title_of
from mengya.text.json_text import whole_characters
from mengya.text.thoughts import split_thoughts

FORMAT = "mengya-conversations-1"
NO_BACKUP = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading something else raises."""


class Picture(NamedTuple):
    id: str
    name: str
    data: bytes


class Merged(NamedTuple):
    id: str
    """Of the conversation now."""
    grown: bool
    """Whether it is new, or has something new."""


def as_json(conversations: list[Conversation]) -> dict[str, Any]:
    return {"conversations": [asdict(c) for c in conversations]}


def to_json(conversations: list[Conversation]) -> str:
    return json.dumps({"format": FORMAT} | as_json(conversations), ensure_ascii=False)


def to_markdown(conversation: Conversation) -> str:
    """The branch in sight, without what was thought."""
    parts = [f"# {conversation.title}"]
    if system := conversation.settings.get("system"):
        parts += ["**System**", system]
    for message in conversation.branch():
        speaker = "**You 你**" if message.role == "user" else f"**{message.info.get('model') or 'Model'}**"
        parts += [speaker, _closed(message.text if message.role == "user" else split_thoughts(message.text)[1])]
        sources = [f"[{s['id']}] {s['file']}{_pages(s)}: {s['quote']}" for s in message.info.get("sources", ())]
        parts += ["\n".join(f"> {line}" for line in "\n".join(sources).splitlines())] if sources else []
    return "\n\n".join(parts) + "\n"


def _closed(text: str) -> str:
    """With the end of a block of code that is left open, as in an answer that was stopped: what follows is none."""
    fence = ""
    for line in text.splitlines():
        mark = re.match(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})", line)
        if not fence:
            fence = mark[1] if mark else ""
        elif mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""
    return f"{text}\n{fence}" if fence else text


def _pages(source: Mapping[str, Any]) -> str:
    return f", p. {', '.join(map(str, source['pages']))}" if source["pages"] else ""


def parsed(text: str | bytes) -> Any:
    """JSON in which every text and number can be stored. ValueError or RecursionError otherwise."""
    return whole_characters(json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite))


def merge(store: Store, owner: str, text: str) -> int:
    """How many conversations are new or have grown. UserError if it is no backup; then nothing has changed."""
    try:
        given = parsed(text)
        rows = given["conversations"] if given["format"] == FORMAT else None
        found = [read_conversation(row) for row in rows or ()]
    except NO_BACKUP:
        raise UserError("this is no backup of conversations; give a .json file that was exported here") from None
    if rows is None:
        raise UserError(f"this backup is of another format; this program reads {FORMAT}")
    return sum(merge_one(store, owner, conversation).grown for conversation in found)


def merge_one(store: Store, owner: str, given: Conversation, pictures: Iterable[Picture] = ()) -> Merged:
    """In one transaction."""
    with store.write() as db:
        owned = db.execute("SELECT owner, updated FROM conversations WHERE id = ?", (given.id,)).fetchone()
        other = _numbering(owner if owned is not None and owned["owner"] != owner else None)
        if owned is not None and owned["owner"] != owner:
            given = _renumbered(given, other)
            query = "SELECT owner, updated FROM conversations WHERE id = ?"
            owned = db.execute(query, (given.id,)).fetchone()
        values = (given.title, given.created, given.updated, given.leaf, json.dumps(given.settings, ensure_ascii=False))
        if owned is None:
            query = "INSERT INTO conversations (title, created, updated, leaf, settings, id, owner) VALUES "
            db.execute(query + "(?, ?, ?, ?, ?, ?, ?)", (*values, given.id, owner))
        present = {row["id"] for row in db.execute("SELECT id FROM messages WHERE conversation = ?", (given.id,))}
        grown = 0
        for message in _in_order(given, present):
            # An id of another conversation is left as it is, whoever that belongs to.
            if not db.execute("SELECT 1 FROM messages WHERE id = ?", (message.id,)).fetchone():
                insert(db, given.id, message)
                grown += 1
        for picture in pictures:
            row = (other(picture.id), given.id, picture.name, sqlite3.Binary(picture.data))
            grown += db.execute("INSERT OR IGNORE INTO pictures VALUES (?, ?, ?, ?)", row).rowcount
        if owned is not None and given.updated > owned["updated"]:
            query = "UPDATE conversations SET title = ?, created = ?, updated = ?, leaf = ?, settings = ? WHERE id = ?"
            db.execute(query, (*values, given.id))
            grown += 1
        return Merged(given.id, owned is None or grown > 0)


def _in_order(given: Conversation, present: set[str]) -> list[Message]:
    """Those that follow a message which is there, or none: so nothing hangs in the air, and nothing is a circle."""
    known, left, found = set(present), list(given.messages), []
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
        leaf=None if row["leaf"] is None else id_of(row["leaf"]),
        settings=_settings(row["settings"]),
        messages=tuple(_read_message(message) for message in row["messages"]),
    )


def _read_message(row: Any) -> Message:
    state, role = row["state"], row["role"]
    if state not in get_args(State) or role not in ("user", "assistant"):
        raise ValueError(state)
    return Message(
        id=id_of(row["id"]),
        parent=None if row["parent"] is None else id_of(row["parent"]),
        role=role,
        text=text_of(row["text"]),
        state="stopped" if state == "answering" else state,
        created=time_of(row["created"]),
        info=_info(row["info"]),
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


def _info(value: Any) -> dict[str, Any]:
    """What is known of an answer; ValueError if a source is none."""
    given = _object(value)
    told = {name: given[name] for name, kind in _INFO.items() if isinstance(given.get(name), kind)}
    sources = given.get("sources") or []
    for source in sources:
        if not all(isinstance(source[name], kind) for name, kind in _SOURCE.items()):
            raise ValueError("source")
        if not all(isinstance(place[name], int) for place in source["places"] for name in ("begin", "end")):
            raise ValueError("place")
    kept = [{name: source[name] for name in _SOURCE} for source in sources]
    shown = [{"id": id_of(p["id"]), "name": text_of(p["name"])} for p in given.get("pictures") or ()]
    return told | ({"sources": kept} if kept else {}) | ({"pictures": shown} if shown else {})
