"""Models from the Hugging Face hub, by its own client: "hf:owner/name" or "hf:owner/name@revision" in place of a path.

Files lie in the client's cache (HF_HOME). A connection that breaks is tried again; what has come whole is not
downloaded again. HF_ENDPOINT names a mirror, HF_TOKEN holds a key for models that are not public, which is never
written or shown.
"""

import os
import re
from pathlib import Path

from mengya.errors import UserError
from mengya.metrics import say

_REMOTE = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py"]
"""What a model directory needs; no pickles. Code is not run unless a recipe says trust_remote_code."""


def is_remote(value: str) -> bool:
    return value.startswith("hf:")


def fetch(value: str) -> Path:
    """The local directory of a model; what is not there yet is downloaded. UserError if it cannot be had."""
    match = _REMOTE.fullmatch(value)
    if match is None:
        raise UserError(f"{value!r} is not of the form hf:owner/name or hf:owner/name@revision")
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise UserError(f"{value!r} needs the client of the hub; pip install 'mengya[models]'") from error
    endpoint = os.environ.get("HF_ENDPOINT") or None
    name, revision = match["name"], match["revision"]
    try:
        found = Path(snapshot_download(name, revision=revision, endpoint=endpoint, allow_patterns=_FILES))
    except errors.GatedRepoError as error:
        raise UserError(f"{value!r} is for those who accepted its terms; accept them, and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{value!r} is not on the hub, or not public; correct the name, or set HF_TOKEN") from error
    except errors.HFValidationError as error:
        raise UserError(f"{value!r} is not of the form hf:owner/name or hf:owner/name@revision: {error}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{value!r}: the model has no revision {revision!r}; correct it") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            f"{value!r} could not be downloaded ({reason}); give the same command again, which keeps the "
            "files that have come whole, or set HF_ENDPOINT to a mirror"
        ) from error
    if not (found / "config.json").is_file():
        raise UserError(f"{value!r} has no config.json: it is not a model that transformers loads; give another")
    if revision != found.name:
        say(f"{value} is revision {found.name}")
    return found


def located(value: str) -> Path:
    """The path that a recipe names, or the local copy of a model from the hub."""
    return fetch(value) if is_remote(value) else Path(value).expanduser()


def name_of(path: Path) -> str | None:
    """What `fetch` was asked for to give this directory, with its revision; None if it is no download."""
    folder, snapshots, revision = path.parent.parent.name, path.parent.name, path.name
    if snapshots != "snapshots" or not folder.startswith("models--"):
        return None
    return f"hf:{folder.removeprefix('models--').replace('--', '/', 1)}@{revision}"
