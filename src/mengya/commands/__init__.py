"""The commands, by name. Each module has a COMMAND and imports what it needs when it runs, so that `--help` is quick.

A new command is a new file and an entry here.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_NAMES = ("run", "plan", "inspect", "help", "chat", "serve", "ui", "export", "index", "ask")
MODULES = {name: f"mengya.commands.{name}" for name in _NAMES}


@dataclass(frozen=True)
class Command:
    """What `mengya NAME` does. Its arguments are the fields of the config: those marked as `Argument` by place, the
    others as --options; the docstrings are the help."""

    config: type
    run: Callable[[Any], None]
    resumes: bool = False
    """The same command goes on where it was stopped."""


def load_command(name: str) -> Command:
    """The command of this name, which must be one of MODULES."""
    return importlib.import_module(MODULES[name]).COMMAND
