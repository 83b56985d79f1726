"""Models from the Hugging Face hub, by its own client.

Files lie in the client's cache (HF_HOME). A connection that breaks is tried again; what has come whole is not
downloaded again. HF_ENDPOINT names a mirror, HF_TOKEN holds a key for models that are not public, which is never
written or shown.
"""

import os
from pathlib import Path

from mengya.errors import UserError
from mengya.hub.wanted import FILES, Wanted


def fetch(wanted: Wanted) -> Path:
    """The local directory of a model; what is not there yet is downloaded. UserError if it cannot be had."""
    value, name, revision = wanted
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise UserError(f"{value!r} needs the client of the hub; pip install 'mengya[models]'") from error
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        return Path(snapshot_download(name, revision=revision, endpoint=endpoint, allow_patterns=list(FILES)))
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


def name_of(path: Path) -> str | None:
    """What of `fetch` gives this directory, with its revision; None if it is none of its."""
    folder, snapshots, revision = path.parent.parent.name, path.parent.name, path.name
    if snapshots != "snapshots" or not folder.startswith("models--"):
        return None
    return f"hf:{folder.removeprefix('models--').replace('--', '/', 1)}@{revision}"
