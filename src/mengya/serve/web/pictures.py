"""Pictures that go with a question to a model that sees: made small, drawn anew, kept in the store."""

import base64
import io
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mengya.errors import UserError
from mengya.rag.reading.limits import Limits
from mengya.serve.web.store import Store, new_id

SIDE = 1568
"""Pixels of the longer side that are kept."""
MOST = 8
"""Pictures of one question."""


class Picture(NamedTuple):
    id: str
    name: str
    data: bytes


def drawn(path: Path, limits: Limits) -> bytes:
    """A picture as JPEG: no more than `SIDE` pixels wide or high, the right way up, without what else a file holds.
    UserError for what is no picture, or has too many pixels."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a limit of our own
            with Image.open(path, formats=("PNG", "JPEG", "WEBP", "GIF", "BMP")) as opened:
                if opened.width * opened.height > limits.pixels:
                    raise Image.DecompressionBombError
                opened.draft("RGB", (SIDE, SIDE))  # JPEG is read at a smaller scale
                upright = ImageOps.exif_transpose(opened)
                if upright.mode.startswith("I"):  # grey of 16 bits; converted, all above 255 would be white
                    upright = upright.point(lambda value: value / 256).convert("L")
                picture = upright.convert("RGBA")
    except Image.DecompressionBombError as error:
        raise UserError(f"the picture has more than {limits.pixels:,} pixels; make it smaller") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"this is no picture that can be read ({type(error).__name__}); save it as JPEG") from error
    picture.thumbnail((SIDE, SIDE))
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    buffer = io.BytesIO()
    white.convert("RGB").save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def check(data: bytes, name: str) -> None:
    """UserError unless it is a picture as `drawn` gives."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its size is looked at next
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
                if max(picture.size) > SIDE:
                    raise ValueError("size")
                picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name[:60]} in the backup is no picture that was exported here") from error


def keep(store: Store, owner: str, conversation: str, name: str, data: bytes) -> str:
    """Its id. Missing."""
    store.get(owner, conversation)
    made = new_id()
    with store.write() as db:
        db.execute("INSERT INTO pictures VALUES (?, ?, ?, ?)", (made, conversation, name, sqlite3.Binary(data)))
    return made


def all_of(store: Store, conversation: str) -> list[Picture]:
    rows = store.read("SELECT id, name, data FROM pictures WHERE conversation = ? ORDER BY rowid", conversation)
    return [Picture(row["id"], row["name"], bytes(row["data"])) for row in rows]


def data_of(store: Store, owner: str, picture: str) -> bytes | None:
    query = "SELECT data FROM pictures p JOIN conversations c ON c.id = p.conversation WHERE p.id = ? AND c.owner = ?"
    rows = store.read(query, picture, owner)
    return bytes(rows[0]["data"]) if rows else None


def named(store: Store, conversation: str, pictures: list[str]) -> list[dict[str, str]]:
    """Those of a conversation among the ids."""
    marks = ", ".join("?" * len(pictures))
    query = f"SELECT id, name FROM pictures WHERE conversation = ? AND id IN ({marks})"
    return [dict(row) for row in store.read(query, conversation, *pictures)]


def beside(messages: Sequence[Mapping[str, Any]], pictured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The last messages of a conversation, as they are put to a model, with the pictures that `pictured` has in their
    place."""
    told = [dict(message) for message in messages]
    for message, other in zip(reversed(told), reversed(pictured), strict=False):
        shown = [part for part in other["content"] if isinstance(part, dict) and part["type"] == "image_url"]
        if shown and message["role"] == other["role"]:
            message["content"] = [{"type": "text", "text": message["content"]}, *shown]
    return told


def parts(store: Store, owner: str, text: str, pictures: list[dict[str, str]]) -> list[dict[str, Any]]:
    """A message as OpenAI's protocol has it: the text, and the pictures that are still there."""
    found = [data for picture in pictures if (data := data_of(store, owner, picture["id"])) is not None]
    urls = ["data:image/jpeg;base64," + base64.b64encode(data).decode() for data in found]
    said = [{"type": "text", "text": text}] if text else []  # some servers refuse an empty one
    return [*said, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
