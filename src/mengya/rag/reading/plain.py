"""Plain text: paragraphs between blank lines, or a paragraph a line where there are none."""

import json
import re

from mengya.rag.reading.draft import Draft, Source, clean
from mengya.rag.reading.encodings import decode
from mengya.rag.reading.names import ending_of
from mengya.rag.reading.structure import heading_level

_BLANK = re.compile(r"\n[ \t\u3000\xa0]*\n\s*")
_ESCAPED = re.compile(r"(?<!\\)(?:\\u[0-9a-fA-F]{4})+")
"""Characters as many programs write them into JSON."""


def read(source: Source, draft: Draft) -> None:
    text, notes = decode(source.path.read_bytes())
    for note in notes:
        draft.note(note)
    if ending_of(source.name) in ("json", "jsonl"):
        text = _ESCAPED.sub(lambda found: json.loads(f'"{found[0]}"'), text)
    add_text(draft, clean(text))


def add_text(draft: Draft, text: str) -> None:
    """Paragraphs and headings of a text without markup, and without pages."""
    parts = _BLANK.split(text)
    for part in parts if len(parts) > 1 else text.split("\n"):
        lines: list[str] = []
        for line in part.split("\n"):
            if level := heading_level(line):
                draft.text("\n".join(lines))
                draft.heading(line, level)
                lines = []
            else:
                lines.append(line)
        draft.text("\n".join(lines))
