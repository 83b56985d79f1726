"""A larger vocabulary for a trained model."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from torch import Tensor

from mengya.errors import UserError
from mengya.model.language_model import LanguageModel
from mengya.text.extension import first_difference, pieces_of_new, vocabulary
from mengya.text.tokenizer import read_backend


def grown_rows(weight: Tensor, first: int, pieces: Sequence[Sequence[int]]) -> Tensor:
    """An embedding or output projection with rows for the new ids `first`, `first + 1`, ...; all others stay.

    Each new row is the mean of the rows of `pieces`, the old ids that spell the new token (fast vocabulary transfer,
    Gee et al. 2022, arXiv:2402.09977); without pieces, the mean of all old rows, which bounds how far the new logits
    move the distribution (Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html). There are at least as
    many rows as before.
    """
    rows = max(len(weight), first + len(pieces))
    out = weight.new_empty(rows, weight.shape[1])
    out[: len(weight)] = weight
    mean = weight[:first].float().mean(0)
    for row, ids in enumerate(pieces, first):
        out[row] = weight[list(ids)].float().mean(0) if ids else mean
    return out


def adopt_tokenizer(model: LanguageModel, directory: Path, new: tokenizers.Tokenizer) -> int:
    """Make `model`, loaded from `directory`, one for the tokenizer `new`; returns how many entries came to it.

    `new` must give every id of the directory's own tokenizer the same meaning, checked token by token. UserError
    otherwise, and if the directory has no tokenizer to compare with and the sizes differ.
    """
    size = len(vocabulary(new))
    known = check_extends(model.vocab_size, directory, new)
    if size > known:
        model.grow_vocabulary(known, pieces_of_new(read_backend(directory), new))
    return size - known


def check_extends(rows: int, directory: Path, new: tokenizers.Tokenizer) -> int:
    """How many entries of `new` the model in `directory`, with so many embedding rows, knows already. UserError as
    `adopt_tokenizer`."""
    size = len(vocabulary(new))
    if not (directory / "tokenizer.json").is_file():
        if size == rows:
            return size
        raise UserError(
            f"{directory} has no tokenizer.json, and its {rows} embedding rows are not the {size} entries of the "
            "shards' tokenizer; copy the model's tokenizer.json there"
        )
    old = read_backend(directory)
    difference = first_difference(old, new)
    if difference:
        number, ours, theirs = difference
        found = f"not in the {size} entries of the shards" if theirs is None else f"{theirs!r} in the shards"
        raise UserError(
            f"the shards' tokenizer does not extend that of {directory}: id {number} is {ours!r} there, and {found}; "
            "tokenize with the model's own tokenizer, or with one grown from it (tokenizer.extend)"
        )
    known = len(vocabulary(old))
    check_has_rows(directory, known, rows)
    return known


def check_has_rows(directory: Path, entries: int, rows: int) -> None:
    """UserError for a tokenizer in `directory` that has more entries than the model has embedding rows."""
    if entries > rows:
        raise UserError(
            f"{directory}: the tokenizer has {entries} entries but the model only {rows} embedding rows; copy the "
            "tokenizer files that belong to this model"
        )
