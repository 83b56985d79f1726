"""What reading a file gives: its blocks in reading order, each with its page, and what became of every page."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Block:
    """A heading, a paragraph or a table, as text: never markup, never an instruction."""

    kind: Literal["heading", "text", "table"]
    text: str
    """Of a table: a line a row, cells joined by " | "."""
    page: int | None = None
    """Counted from 1: the page, slide or sheet; None where the format has none."""
    level: int = 0
    """Of a heading: 1 is the highest."""
    rows: tuple[tuple[str, ...], ...] = ()
    """Of a table; the first row is its header."""


@dataclass(frozen=True)
class Page:
    number: int
    """Counted from 1."""
    state: Literal["text", "ocr", "blank", "unread"]
    """Read from its text; read by OCR; nothing on it; something is on it that could not be read."""
    label: str = ""
    """What the file itself calls it: "iv", the name of a sheet."""
    note: str = ""
    """What the user should know of it, as "vertical text, order uncertain"."""


@dataclass(frozen=True)
class Document:
    name: str
    """As the user knows it; text alone, never a part of a path."""
    kind: str
    """What it is by its content: pdf, docx, pptx, xlsx, csv, html, markdown, text, image."""
    blocks: tuple[Block, ...]
    pages: tuple[Page, ...] = ()
    """Every page; empty where the format has none."""
    notes: tuple[str, ...] = ()
    """What was left out or is uncertain, in words for the user."""


def notes_of(pages: Iterable[Page]) -> list[str]:
    """What is to be known of pages, each thing once, with the pages that it is true of."""
    found: dict[str, list[str]] = {}
    for page in pages:
        if page.note:
            found.setdefault(page.note, []).append(str(page.number))
    return [f"{', '.join(numbers[:20])}{'…' * (len(numbers) > 20)}: {note}" for note, numbers in found.items()]
