"""Documents: text that knows where it came from, from the raw file to the shard."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from mengya.data.cleaning import repair_surrogates
from mengya.data.fields import Notes
from mengya.data.files import Paths
from mengya.data.intake import Intake
from mengya.data.readers import Rejected, Row
from mengya.data.texts import choose_field, split_at_marks, text_of_row

_AT_ONCE_CHARACTERS = 2_000_000


class Document(NamedTuple):
    """`source` is the file (its path as it was found) or another origin, `id` the place in it. Together they are
    unique."""

    text: str
    source: str
    id: str


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


def read_documents(paths: Paths, text_field: str | None, intake: Intake) -> Iterator[Document]:
    """The text of every row of every file, uncleaned but encodable; rows without text are quarantined.

    The field is `text_field`, or else chosen once for each file by its first rows (see `choose_field`). A text with
    marks between documents, such as <|endoftext|>, is several documents.
    """
    for file in intake.files(paths):
        rows = intake.rows(file)
        sample: list[Row] = []
        size = 0
        for row in rows:
            sample.append(row)
            size += len(row.value) if isinstance(row.value, str) else len(json.dumps(row.value, default=str))
            if len(sample) == 64 or size > 1 << 20:
                break
        objects = [row.value for row in sample if isinstance(row.value, dict | list)]
        chosen = text_field or (choose_field(objects) if objects else None)
        if objects:
            intake.of(str(file)).text_field = chosen or "none"
        for row in chain(sample, rows):
            yield from _documents(row, chosen, intake)


def _documents(row: Row, chosen: str | None, intake: Intake) -> Iterator[Document]:
    """The documents in one row, which is counted."""
    notes = Notes()
    try:
        text = text_of_row(row.value, chosen, notes)
    except ValueError as error:
        intake.add(Rejected(row.file, row.line, str(error), row.value))
        return
    intake.use(row.file, notes)
    intake.of(row.file).characters += len(text)
    source, place = row.origin
    parts = split_at_marks(repair_surrogates(text))
    for number, part in enumerate(parts, 1):
        yield Document(part, source, place if len(parts) == 1 else f"{place}/{number}")
