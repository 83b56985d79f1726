"""What is asked of a hub: "hf:owner/name" or "ms:owner/name@revision"."""

import re
from typing import NamedTuple

from mengya.errors import UserError

FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
"""What a model directory needs; no pickles. Code is not run unless a recipe says trust_remote_code."""
_FORM = re.compile(r"(?P<hub>\w+):(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


class Wanted(NamedTuple):
    value: str
    """As the user wrote it."""
    name: str
    """owner/name."""
    revision: str | None
    """A branch, a tag or a commit; None: the hub's default branch."""


def parse(value: str) -> Wanted:
    """UserError if it is not of the form."""
    match = _FORM.fullmatch(value)
    if match is None or any(part.strip(".") == "" for part in match["name"].split("/")):
        hub = value.partition(":")[0]
        raise UserError(f"{value!r} is not of the form {hub}:owner/name or {hub}:owner/name@revision")
    return Wanted(value, match["name"], match["revision"])
