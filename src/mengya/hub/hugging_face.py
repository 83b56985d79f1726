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


def token(wanted: Wanted) -> str:
    """The key to write with. UserError without one."""
    found = os.environ.get("HF_TOKEN")
    if not found:
        raise UserError(f"{wanted.value!r} needs a key that may write; set HF_TOKEN")
    return found


def push(directory: Path, wanted: Wanted, public: bool, license: str | None) -> str:
    """See `hub.push`; the license is read from the model card."""
    try:
        from huggingface_hub import HfApi, errors
    except ImportError as error:
        raise UserError(f"{wanted.value!r} needs the client of the hub; pip install 'mengya[models]'") from error
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token(wanted))
    try:
        made = api.create_repo(wanted.name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=wanted.name, folder_path=directory, commit_message="Exported by Mengya")
        return str(made)
    except errors.HFValidationError as error:
        raise UserError(f"{wanted.value!r} is not of the form hf:owner/name: {error}") from error
    except (errors.HfHubHTTPError, OSError) as error:
        response = getattr(error, "response", None)
        if response is not None and response.status_code in (401, 403):
            raise UserError(
                f"HF_TOKEN may not write to {wanted.value!r}; make a key that may, or correct it"
            ) from error
        reason = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{wanted.value!r} could not be uploaded ({reason}); the files are there: give them again with "
            f"hf upload {wanted.name} DIRECTORY"
        ) from error


def name_of(path: Path) -> str | None:
    """What of `fetch` gives this directory, with its revision; None if it is none of its."""
    folder, snapshots, revision = path.parent.parent.name, path.parent.name, path.name
    if snapshots != "snapshots" or not folder.startswith("models--"):
        return None
    return f"hf:{folder.removeprefix('models--').replace('--', '/', 1)}@{revision}"
