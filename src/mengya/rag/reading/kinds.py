"""What a file is by its content, and which reader knows it. Its ending decides only between kinds of text."""

import contextlib
import importlib
import re
from typing import Protocol, cast

from mengya.errors import UserError
from mengya.rag.document import Document
from mengya.rag.reading.archives import office_kind
from mengya.rag.reading.draft import Draft, Full, Source
from mengya.rag.reading.encodings import decode
from mengya.rag.reading.names import ending_of
from mengya.rag.reading.refused import READ, known, of_old_office

_READERS = {
    "pdf": "pdf",
    "docx": "docx",
    "pptx": "slides",
    "xlsx": "sheets",
    "csv": "delimited",
    "html": "html",
    "markdown": "markdown",
    "text": "plain",
    "image": "images",
}
"""Kind -> the module of this package that reads it: imported when it is needed, as are the libraries below it."""
_ENDINGS = {
    "pdf": "pdf",
    "docx": "docx docm dotx",
    "pptx": "pptx pptm ppsx",
    "xlsx": "xlsx xlsm",
    "csv": "csv tsv",
    "html": "html htm xhtml",
    "markdown": "md markdown",
    "text": "txt text log json jsonl xml yaml yml toml ini py tex rst",
    "image": "png jpg jpeg gif bmp tif tiff webp",
}
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HTML = re.compile(
    r"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_TAGS = re.compile(r"</(p|div|a|li|td|span|h[1-6])\s*>", re.IGNORECASE)
_MARKDOWN = re.compile(r"^(#{1,6} \S|```|\|.*\|\s*\n\|[ :|-]+\|\s*$|[-*] \S.*\n[-*] \S)", re.MULTILINE)


class Reader(Protocol):
    def read(self, source: Source, draft: Draft) -> None:
        """Fill `draft` from `source`. UserError with what to do; `Full` may pass through."""


def read_source(source: Source) -> Document:
    """UserError: a kind that is not read, or what its reader refuses."""
    draft = Draft(source.limits)
    kind = kind_of(source)
    told = kind_by_ending(source.name)
    if told and told != kind and not (told in _TEXTS and kind in _TEXTS):
        draft.note(f"the name ends like {told}, but the content is {kind}")
    reader = cast(Reader, importlib.import_module(f"mengya.rag.reading.{_READERS[kind]}"))
    try:
        with contextlib.suppress(Full):  # the draft says so itself
            reader.read(source, draft)
    except ImportError as error:
        raise UserError(f"{kind} files need the library {error.name}; pip install 'mengya[documents]'") from error
    return draft.finish(source.name, kind)


_TEXTS = ("csv", "markdown", "text", "html")


def kind_by_ending(name: str) -> str | None:
    ending = ending_of(name)
    return next((kind for kind, endings in _ENDINGS.items() if ending in endings.split()), None)


def kind_of(source: Source) -> str:
    with source.path.open("rb") as file:
        head = file.read(4096)
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return office_kind(source.path, source.limits)
    if head.startswith(_OLD_OFFICE):
        raise UserError(of_old_office(source.path.read_bytes()))
    bitmap = head.startswith(b"BM") and head[6:10] == bytes(4)  # a text may begin with these letters
    if bitmap or head.startswith(_IMAGES) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        return "image"
    if what := known(head, ending_of(source.name)):
        raise UserError(f"this is {what}: {READ}")
    return _kind_of_text(source)


def _kind_of_text(source: Source) -> str:
    data = source.path.read_bytes()
    told = kind_by_ending(source.name)
    if _HTML.match(data[:4096].decode("latin-1")):  # whose encoding it says itself
        return "html"
    text = decode(data)[0][:100_000]
    if _HTML.match(text) or (told == "html" and _TAGS.search(text)):
        return "html"
    if told in ("csv", "markdown", "text"):
        return told
    if _MARKDOWN.search(text):
        return "markdown"
    return "csv" if _is_table(text) else "text"


def _is_table(text: str) -> bool:
    """At least three lines that all have the same number of commas or tabs."""
    lines = [line for line in text[:20_000].split("\n")[:-1] if line.strip()][:20]
    return len(lines) > 2 and any(
        lines[0].count(mark) > 0 and len({line.count(mark) for line in lines}) == 1 for mark in ",\t"
    )
