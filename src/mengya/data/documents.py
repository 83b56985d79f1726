"""Documents: text that knows where it came from, from the raw file to the shard."""

import json
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple

from mengya.data.cleaning import repair_surrogates
from mengya.data.files import Paths
from mengya.data.quarantine import Quarantine
from mengya.data.readers import Rejected, Row, read_rows

TEXT_FIELDS = (
    "text content body document doc article passage paragraph raw_content story 正文 内容 文本 文章 全文 段落".split()
)
_AT_ONCE_CHARACTERS = 2_000_000


class Document(NamedTuple):
    """`source` is the file (its path as it was found) or another origin, `id` the place in it. Together they are
    unique."""

    text: str
    source: str
    id: str


def content_hash(text: str) -> bytes:
    """16 bytes of BLAKE2b over the text with every run of white space squeezed to one space."""
    return blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def is_heldout(content: bytes, fraction: float) -> bool:
    """Whether the document with this `content_hash` is held out. Depends on the text and `fraction` alone, so that
    adding or reordering files moves no document across, and a larger fraction holds out a superset."""
    assert 0.0 <= fraction <= 1.0, fraction
    return int.from_bytes(content[:8], "big") < fraction * 2.0**64


def in_batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists of neighbours with about `_AT_ONCE_CHARACTERS` each."""
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


def read_documents(paths: Paths, text_field: str | None, quarantine: Quarantine) -> Iterator[Document]:
    """The text of every row of every file, uncleaned but encodable; rows without text are quarantined.

    The field is `text_field`, or else decided once for each file by its first rows: the first of `TEXT_FIELDS` that at
    least half of them have, or the string field with the most text.
    """
    for file in quarantine.files(paths):
        rows = quarantine.without(read_rows(file))
        sample: list[Row] = []
        size = 0
        for row in rows:
            sample.append(row)
            size += len(row.value) if isinstance(row.value, str) else len(json.dumps(row.value, default=str))
            if len(sample) == 64 or size > 1 << 20:
                break
        field = text_field or _choose_field(sample)
        yield from quarantine.without(_document(row, field) for row in chain(sample, rows))


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
    lengths: dict[str, list[int]] = {}  # of each field's texts
    for name, value in chain.from_iterable(row.items() for row in rows):
        if isinstance(value, str) and value.strip():
            lengths.setdefault(name, []).append(len(value))
    known = {name.strip().lower(): name for name in reversed(lengths) if 2 * len(lengths[name]) >= len(rows)}
    longest = max(lengths, key=lambda name: sum(lengths[name]), default=None)
    return next((known[field] for field in TEXT_FIELDS if field in known), longest)
