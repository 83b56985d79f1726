"""mengya inspect PATH…: what training would read of files."""

from pathlib import Path
from typing import Annotated, Literal

from mengya.commands import Command
from mengya.schema import Argument, Natural, config


@config
class Config:
    """Show what training would make of data: rows, fields that are read and not read, samples, what is put aside."""

    paths: Annotated[list[str], Argument("PATH")]
    """Files, folders or patterns."""
    as_: Literal["corpus", "chat", "pairs"] | None = None
    """How to read them: text, conversations or preference pairs. Default: found out for each file."""
    text_field: str | None = None
    """Of text: the field that holds it, as corpus.text_field."""
    model: Path | None = None
    """A model or tokenizer directory, for exact numbers of tokens and its chat template."""
    samples: Natural = 3
    """Rows of each file that are shown."""
    json: bool = False
    """One JSON object a file, a line each."""


def run(config: Config) -> None:
    from mengya.data.files import scan_files
    from mengya.inspection import inspect_files, print_inspection
    from mengya.metrics import say

    for found in inspect_files(config.paths, config.as_, config.text_field, config.model, config.samples):
        print_inspection(found, config.json)
    ignored = scan_files(config.paths)[1]
    if ignored and not config.json:
        say(f"{len(ignored):,} files of other types ignored, e.g. {ignored[0]}")


COMMAND = Command(Config, run)
