"""Documents: text that knows where it came from, from the raw file to the shard."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from mengya.data.cleaning import repair_surrogates
from mengya.data.quarantine import Quarantine
from mengya.data.readers import Rejected, Row, read_rows

TEXT_FIELDS = (
    *("text", "content", "body", "document", "doc", "article", "passage", "paragraph", "raw_content", "story"),
    *("正文", "内容", "文本", "文章", "全文", "段落"),
)
_AT_ONCE_CHARACTERS = 2_000_000


class Document(NamedTuple):
    """`source` is the file (as it was found) or another origin, `id` the place in it; together they are unique."""

    text: str
    source: str
    id: str


def in_batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists of neighbours, of about `_AT_ONCE_CHARACTERS` in all."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _AT_ONCE_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def read_documents(
    paths: str | Path | list[str] | list[Path], text_field: str | None, quarantine: Quarantine
) -> Iterator[Document]:
    """The text of every row of every file, uncleaned but encodable; what has none is quarantined.

    The field is `text_field`, or else decided once per file by its first rows: the first of `TEXT_FIELDS` that most of
    them have, or the string field that is longest on average.
    """
    for file in quarantine.files(paths):
        yield from quarantine.without(_documents_of(file, text_field))


def _documents_of(file: Path, text_field: str | None) -> Iterator[Document | Rejected]:
    rows = read_rows(file)
    sample: list[Row] = []  # the first rows, few enough to hold
    size = 0
    for row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        sample.append(row)
        size += len(row.value) if isinstance(row.value, str) else len(json.dumps(row.value, default=str))
        if len(sample) == 64 or size > 1 << 20:
            break
    field = text_field or _choose_field(sample)
    for row in chain(sample, rows):
        yield row if isinstance(row, Rejected) else _document(row, field)


def _document(row: Row, field: str | None) -> Document | Rejected:
    value = row.value.get(field) if isinstance(row.value, dict) and field else row.value
    if not isinstance(value, str):
        named = f"the text field {field!r}" if field else "a text field"
        return Rejected(row.file, row.line, f"no string in {named}; set text_field", row.value)
    if not value or value.isspace():
        return Rejected(row.file, row.line, "empty", row.value)
    return Document(repair_surrogates(value), *row.origin)


def _choose_field(sample: list[Row]) -> str | None:
    """None if no row of the sample has a string in any field (plain text, lists)."""
    rows = [row.value for row in sample if isinstance(row.value, dict)]
    filled: Counter[str] = Counter()
    lengths: Counter[str] = Counter()
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str) and value.strip():
                filled[name] += 1
                lengths[name] += len(value)
    known = {name.strip().lower(): name for name in reversed(list(filled)) if 2 * filled[name] >= len(rows)}
    for field in TEXT_FIELDS:
        if field in known:
            return known[field]
    return max(lengths, key=lambda name: lengths[name]) if lengths else None
