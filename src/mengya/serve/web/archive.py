"""All that an owner has as one zip archive: conversations, pictures, and what was read of every file.

It holds ``mengya.json`` (conversations, and lists of the others), ``pictures/N.jpg`` and ``documents/N.json``, N being
the place in the list. Only these names are asked for, and nothing is unpacked to disk. What comes in is looked through
to its end before anything changes.
"""

import json
import re
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import TypeAdapter, ValidationError

from mengya.errors import UserError
from mengya.rag.document import Document
from mengya.rag.passages import cut
from mengya.rag.reading.names import name_as_text
from mengya.rag.store import UnknownBase
from mengya.serve.web import backup, pictures
from mengya.serve.web.backup import Merged
from mengya.serve.web.library import Library
from mengya.serve.web.pictures import Picture
from mengya.serve.web.store import Conversation, Store

FORMAT = "mengya-backup-1"
_INDEX = "mengya.json"
_ENTRIES = 200_000
_TEXT, _PICTURE, _ALL = 200_000_000, 20_000_000, 4_000_000_000
"""Bytes, unpacked: of the index and of a document, of a picture, and of everything."""
_DOCUMENT = TypeAdapter(Document)
_HASH = re.compile(r"[0-9a-f]{64}")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)
"""What reading an archive raises; RuntimeError for one that is encrypted."""


class _Shown(NamedTuple):
    conversation: str
    id: str
    name: str
    entry: str


class _File(NamedTuple):
    place: str
    name: str
    hash: str
    added: float
    entry: str


def write(file: BinaryIO, store: Store, library: Library, owner: str) -> None:
    """UserError for what is damaged, or changed by somebody meanwhile."""
    conversations = [store.get(owner, listed.id) for listed in store.all(owner)]
    places = [place for place in library.places(owner) if place.startswith("base:")]
    places += [f"conversation:{conversation.id}" for conversation in conversations]
    shown: list[dict[str, Any]] = []
    files: list[dict[str, Any]] = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for conversation in conversations:
            for picture in pictures.all_of(store, conversation.id):
                archive.writestr(f"pictures/{len(shown)}.jpg", picture.data, zipfile.ZIP_STORED)
                shown.append({"conversation": conversation.id, "id": picture.id, "name": picture.name})
        for place in places:
            with suppress(UnknownBase):  # most conversations have no files
                base = library.base(owner, place)
                for kept in base.files():
                    if (document := base.document(kept.name)) is not None:
                        archive.writestr(f"documents/{len(files)}.json", _DOCUMENT.dump_json(document))
                        files.append({"place": place, "name": kept.name, "hash": kept.hash, "added": kept.added})
        told = {"format": FORMAT, "pictures": shown, "files": files} | backup.as_json(conversations)
        archive.writestr(_INDEX, json.dumps(told, ensure_ascii=False))


def take(path: Path, store: Store, library: Library, owner: str) -> dict[str, int]:
    """How many conversations and files are new or have grown. UserError, and no change, if it is no backup."""
    if not zipfile.is_zipfile(path):
        return _counts(backup.merge(store, owner, path.read_bytes()[: _TEXT + 1].decode("utf-8-sig", "replace")), 0)
    try:
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > _ENTRIES:
                raise UserError(f"the backup has more than {_ENTRIES:,} entries")
            conversations, shown, files = _index(archive)
            _look_through(archive, shown, files)
            library.check(owner)
            merged = [_merge(archive, store, owner, each, shown) for each in conversations]
            ids = {each.id: now.id for each, now in zip(conversations, merged, strict=True)}
            grown = sum(_restore(archive, library, owner, file, ids) for file in files)
            return _counts(sum(now.grown for now in merged), grown)
    except _DAMAGED as error:
        raise UserError(f"the backup is damaged or cut off ({error}); export it again") from error


def _counts(conversations: int, files: int) -> dict[str, int]:
    return {"conversations": conversations, "files": files}


def _index(archive: zipfile.ZipFile) -> tuple[list[Conversation], list[_Shown], list[_File]]:
    given, conversations = backup.index(_read(archive, _INDEX, _TEXT), FORMAT)
    try:
        known = {conversation.id for conversation in conversations}
        shown = [_picture(number, row, known) for number, row in enumerate(given.get("pictures") or ())]
        files = [_file(number, row, known) for number, row in enumerate(given.get("files") or ())]
    except backup.NO_BACKUP:
        raise UserError("a list in this backup is damaged; export it again") from None
    return conversations, shown, files


def _picture(number: int, row: Any, conversations: set[str]) -> _Shown:
    if row["conversation"] not in conversations:
        raise ValueError("conversation")
    name = name_as_text(backup.text_of(row["name"]))
    return _Shown(row["conversation"], backup.id_of(row["id"]), name, f"pictures/{number}.jpg")


def _file(number: int, row: Any, conversations: set[str]) -> _File:
    kind, _, name = backup.text_of(row["place"]).partition(":")
    place = f"base:{name_as_text(name)}" if kind == "base" else f"{kind}:{name}"
    if not name or (kind != "base" and not (kind == "conversation" and name in conversations)):
        raise ValueError("place")
    if not _HASH.fullmatch(row["hash"]):
        raise ValueError("hash")
    added = backup.time_of(row["added"])
    return _File(place, name_as_text(backup.text_of(row["name"])), row["hash"], added, f"documents/{number}.json")


def _look_through(archive: zipfile.ZipFile, shown: list[_Shown], files: list[_File]) -> None:
    """UserError if a part is missing, damaged, or not what it should be."""
    left = _ALL
    for picture in shown:
        data = _read(archive, picture.entry, min(left, _PICTURE))
        left -= len(data)
        pictures.check(data, picture.name)
    for file in files:
        data = _read(archive, file.entry, min(left, _TEXT))
        left -= len(data)
        if not cut(_document(data, file)):
            raise UserError(f"{file.name} in the backup has no text")


def _document(data: bytes, file: _File) -> Document:
    try:
        document = _DOCUMENT.validate_json(data)
    except (ValidationError, RecursionError):
        raise UserError(f"{file.name} in the backup is no document that was exported here") from None
    return Document(**(vars(document) | {"name": file.name}))


def _read(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """An entry, whatever the archive says of its size. zipfile compares its checksum."""
    try:
        with archive.open(name) as entry:
            data = entry.read(most + 1)
    except KeyError:
        raise zipfile.BadZipFile(f"{name} is missing") from None
    if len(data) > most:
        raise UserError("unpacked, the backup is larger than what is allowed; it looks like an archive bomb")
    return data


def _merge(archive: zipfile.ZipFile, store: Store, owner: str, given: Conversation, shown: list[_Shown]) -> Merged:
    def own() -> Iterator[Picture]:
        for picture in shown:
            if picture.conversation == given.id:
                yield Picture(picture.id, picture.name, _read(archive, picture.entry, _PICTURE))

    return backup.merge_one(store, owner, given, own())


def _restore(archive: zipfile.ZipFile, library: Library, owner: str, file: _File, ids: dict[str, str]) -> bool:
    kind, _, name = file.place.partition(":")
    place = f"conversation:{ids[name]}" if kind == "conversation" else file.place
    document = _document(_read(archive, file.entry, _TEXT), file)
    return library.restore(owner, place, document, file.hash, min(file.added, time.time()))
