"""What is known before any stage runs: of directories that are there, and of the rows of files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mengya.data.corpus import Corpus
from mengya.data.files import file_format, scan_files
from mengya.data.readers import Rejected, read_rows
from mengya.data.shards import Shards
from mengya.errors import UserError
from mengya.model.load import describe
from mengya.model.vocabulary import check_has_rows
from mengya.stage import Promise
from mengya.text.template import own_template
from mengya.text.tokenizer import Tokenizer, read_files

_ROWS_LOOKED_AT = 10_000


def look(kind: str, path: Path) -> Promise:
    """What is known of a directory that is there and should hold something of this `kind`, as `Input` names it.

    UserError if it does not.
    """
    return _LOOKS[kind](path) if kind in _LOOKS else Promise(path=path)


def _corpus(path: Path) -> Promise:
    Corpus(path)
    return Promise(path=path)


def _tokenizer(path: Path) -> Promise:
    return Promise(path=path, vocab_size=Tokenizer.load(path).vocab_size, tokenizer=path, template=path)


def _shards(path: Path) -> Promise:
    promise = _tokenizer(path)
    for split in ("train", "heldout"):
        Shards(path / split)
    return promise


def _model(path: Path) -> Promise:
    description = describe(path)
    size, tokenizer = 0, None
    if (path / "tokenizer.json").is_file():
        size, tokenizer = Tokenizer.load(path).vocab_size, path
        if rows := description.get("vocab_size"):  # 0, or none, where the model's code says how many there are
            check_has_rows(path, size, rows)
    return Promise(path=path, vocab_size=size, tokenizer=tokenizer, template=path, model=description)


_LOOKS: dict[str, Callable[[Path], Promise]] = {
    "corpus": _corpus,
    "tokenizer": _tokenizer,
    "shards": _shards,
    "model": _model,
}


def kept_template(promise: Promise) -> Path | None:
    """The directory whose chat template goes on with a tokenizer; None if it has none, so that ours must be named."""
    directory = promise.template
    return directory if directory is not None and own_template(read_files(directory)) else None


def check_files(files: list[Promise]) -> None:
    """UserError if there is nothing to read in the files that are there, or a reader lacks its library."""
    paths = [str(file.path) for file in files if file.path]
    formats = {file_format(path)[0]: path for path in scan_files(paths)[0]} if paths else {}
    for path in formats.values():
        next(read_rows(path), None)


def check_rows(files: list[Promise], kinds: tuple[str, ...], parse: Callable[[Any], Any], nothing: str) -> None:
    """UserError, with the message `nothing`, if no row can be used of files that are there or that a stage will write.

    `parse` raises ValueError(reason) for a row that cannot. Of many rows the first ones are looked at.
    """
    made = [file.rows for file in files if file.path is None]
    if any(rows in ("", *kinds) for rows in made):
        return
    paths = [str(file.path) for file in files if file.path is not None]
    faults = [f"each row is a {rows}, not a {kinds[0]}" for rows in made]
    for path in scan_files(paths)[0] if paths else []:
        for row in read_rows(path):
            try:
                if isinstance(row, Rejected):
                    raise ValueError(row.reason)
                parse(row.value)
                return
            except ValueError as error:
                faults.append(f"{row.file}:{row.line}: {error}")
            if len(faults) == _ROWS_LOOKED_AT:
                return
    if faults:
        raise UserError(f"{nothing}; check the input ({faults[0]})")
