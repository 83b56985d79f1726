"""Raw files and the embedded schoolbook -> cleaned, deduplicated documents, some of them held out."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from mengya.data import schoolbook
from mengya.data.cleaning import clean_document
from mengya.data.corpus import SPLITS, CorpusWriter, divide_again
from mengya.data.documents import Document, in_batches, read_documents
from mengya.data.intake import Intake
from mengya.data.splits import Splitter, content_hash
from mengya.data.workers import ordered_map
from mengya.errors import UserError
from mengya.metrics import format_count, say
from mengya.schema import Count, Input, Natural, config
from mengya.stage import Estimate, Inputs, Promise, Promises, Sources, Stage
from mengya.stages.estimates import bytes_of_files
from mengya.stages.known import check_files


@config
class Config:
    """Collect text."""

    path: Annotated[str | list[str], Input("file")] | None = None
    """A file, folder, glob or list of them: .txt .md .jsonl .json .csv .tsv .parquet .bio, plain, .gz or .zst."""
    text_field: str | None = None
    """Field that holds the text of a row; found by itself if not set."""
    schoolbook: bool = False
    """Add the embedded Chinese schoolbook: text, conversations, preference pairs and held-out questions."""
    entities: bool = False
    """Add the schoolbook's sentences with entities: entities.jsonl, and heldout_entities.jsonl to measure on."""
    reading: bool = False
    """Add conversations about single sentences, from which a small model learns to answer from documents:
    reading.jsonl."""
    heldout: float = 0.01
    """Share of the documents to measure on, not trained on; chosen by content."""
    min_chars: Count = 1
    """Shorter documents are left out (and counted)."""
    seed: Natural = 0

    def __post_init__(self) -> None:
        if self.path is None and not self.schoolbook:
            raise ValueError("there is no text: set path to your files, or schoolbook = true")
        if not 0 < self.heldout < 1:
            raise ValueError(f"heldout={self.heldout} must be between 0 and 1, e.g. 0.01")


_BOOKS = {
    "schoolbook": schoolbook.FILES, "entities": schoolbook.ENTITY_FILES, "reading": schoolbook.READING_FILES
}  # fmt: skip
"""Key -> what it adds."""
_MORE = {"entities": schoolbook.write_entities, "reading": schoolbook.write_reading}
"""Key -> what writes it beside the text."""


def promise(config: Config, inputs: Promises) -> Promise:
    kinds = {f"{split}.jsonl": "text" for split in SPLITS}
    absent: dict[str, str] = {}
    for key, files in _BOOKS.items():
        reason = f"comes with the schoolbook, and corpus.{key} is false; name a file of your own, or set it to true"
        if getattr(config, key):
            kinds |= files
        else:
            absent |= dict.fromkeys(files, reason)
    return Promise(files={name: Promise(rows=rows) for name, rows in kinds.items()}, absent=absent)


def _more(config: Config) -> list[Callable[[Path, int], dict[str, int]]]:
    return [write for key, write in _MORE.items() if getattr(config, key)]


def _check_path(config: Config, inputs: Promises) -> None:
    check_files(inputs.get("path", []))


def _documents(config: Config, paths: list[Path], out: Path, intake: Intake) -> Iterator[Document]:
    if config.schoolbook:
        schoolbook.write(out, config.seed)
        with open(out / "text.jsonl", encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                yield Document(json.loads(line)["text"], "schoolbook", str(number))
        (out / "text.jsonl").unlink()
    if paths:
        yield from read_documents([str(path) for path in paths], config.text_field, intake)


def _clean(documents: list[Document]) -> list[tuple[Document, bytes]]:
    """Each cleaned, with its content hash."""
    cleaned = [document._replace(text=clean_document(document.text)) for document in documents]
    return [(document, content_hash(document.text)) for document in cleaned]


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write the files of a `Corpus`, intake.json and quarantine.jsonl, and those of the schoolbook."""
    for write in _more(config):
        write(out, config.seed)
    duplicates = too_short = 0
    seen: set[bytes] = set()
    splitter = Splitter(config.heldout)
    with Intake(out / "quarantine.jsonl") as intake, CorpusWriter(out) as writer:
        documents = _documents(config, inputs.get("path", []), out, intake)
        # One process: on two cores, sending the text to others takes the time that they would save.
        for batch in ordered_map(_clean, in_batches(documents), workers=1):
            for document, key in batch:
                if len(document.text) < config.min_chars:
                    too_short += 1
                elif key in seen:
                    duplicates += 1
                else:
                    seen.add(key)
                    writer.add("heldout" if splitter.add(key) else "train", document)
    if not seen:
        left_out = f"{too_short:,} too short, {intake.summary()}"
        raise UserError(f"the corpus is empty: no document was left to train on ({left_out}); check corpus.path")
    held_out = [True] if len(seen) == 1 else splitter.corrected()
    if held_out is not None:
        writer = divide_again(out, held_out, config.heldout)
    counts = writer.counts
    intake.tell()
    say(
        f"  {counts['train']:,} documents ({format_count(counts['train_bytes'])}B) to train on, {counts['heldout']:,} "
        f"held out, {duplicates:,} duplicates and {too_short:,} short ones left out"
    )
    if len(seen) == 1:
        say("  there is one document: its tail is held out")
    intake.write(out)
    writer.finish(duplicates=duplicates, too_short=too_short, quarantined=intake.quarantined)


def estimate(config: Config, sources: Sources, promise: Promise) -> Estimate:
    """From rates measured on two cores."""
    book = _sizes(schoolbook.write, config.seed) if config.schoolbook else {}
    text = bytes_of_files(sources.get("path", [])) + (book["text.jsonl"].text if book else 0)
    files = dict(book)
    for write in _more(config):
        files |= _sizes(write, config.seed)
    return Estimate(seconds=2 + text / 20e6 + (6 if book else 0), disk=text, text=text, files=files)


def _sizes(write: Callable[[Path, int], dict[str, int]], seed: int) -> dict[str, Estimate]:
    with tempfile.TemporaryDirectory() as folder:
        rows = write(Path(folder), seed)
        return {n: Estimate(text=(Path(folder) / n).stat().st_size, rows=count) for n, count in rows.items()}


STAGE = Stage(config=Config, run=run, makes=("corpus",), estimate=estimate, promise=promise, checks=(_check_path,))
