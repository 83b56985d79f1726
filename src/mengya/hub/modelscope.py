"""Models of ModelScope, by its own client.

Files lie in the client's cache (MODELSCOPE_CACHE), in a folder for each commit. A connection that breaks is tried
again; what has come whole is not downloaded again. MODELSCOPE_ENDPOINT names a mirror, MODELSCOPE_API_TOKEN holds a key
for models that are not public, which is never written or shown.
"""

import contextlib
import json
import logging
import os
from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from mengya import durable
from mengya.errors import UserError
from mengya.hub.wanted import FILES, Wanted
from mengya.metrics import say

_BRANCH = "master"


def fetch(wanted: Wanted) -> Path:
    """The local directory of a model; what is not there yet is downloaded. UserError if it cannot be had."""
    value, name, revision = wanted
    try:
        from modelscope_hub import HubApi, errors, get_default_config
    except ImportError as error:
        raise UserError(f"{value!r} needs the client of ModelScope; pip install 'mengya[modelscope]'") from error
    repository = Path(get_default_config().cache_dir) / "models" / name.replace("/", "--")
    known = _whole(repository, revision or _BRANCH)
    if known is not None and known.name == revision:  # a commit does not change
        return known
    try:
        with _quiet():
            return _download(HubApi(), wanted, repository)
    except (errors.HubError, OSError) as error:
        cause = _cause(error)
        denied = isinstance(cause, (errors.AuthenticationError, errors.PermissionDeniedError))
        if denied or isinstance(error, errors.NotExistError):
            raise UserError(
                f"{value!r} is not on ModelScope, or not for you; correct the name, accept its terms there, or set "
                "MODELSCOPE_API_TOKEN"
            ) from error
        not_json = "the answer is not JSON; is it a proxy's page?" if isinstance(cause, ValueError) else ""
        reason = not_json or next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        if known is not None:
            say(f"{value}: ModelScope cannot be asked ({reason}); taking what was downloaded before")
            return known
        raise UserError(
            f"{value!r} could not be downloaded ({reason}); give the same command again, which keeps the "
            "files that have come whole, or set MODELSCOPE_ENDPOINT to a mirror"
        ) from error


def _download(api: Any, wanted: Wanted, repository: Path) -> Path:
    value, name, revision = wanted
    branch = revision or _BRANCH
    entries = _listed(api, wanted, branch)
    commit = branch if _is_commit(branch) else _newest_commit(value, entries)
    files = [entry for entry in entries if entry.get("Type") == "blob" and _is_needed(value, entry["Path"])]
    sizes, folder = {entry["Path"]: entry["Size"] for entry in files}, repository / "snapshots" / commit
    note = _read(repository, commit)
    if note is None or note["files"] != sizes or _whole(repository, commit) is None:
        _delete_others(folder, sizes)
        api.download_repo(name, "model", revision=branch, local_dir=folder, file_list=files)
        durable.flush_tree(folder)
    for asked in {commit, branch}:
        path = _note(repository, asked)
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f"{path.name}.{os.getpid()}")  # several ranks may write it
        durable.write_json(own, {"name": name, "commit": commit, "files": sizes})
        own.replace(path)
    return folder


def _delete_others(folder: Path, names: Collection[str]) -> None:
    """Delete files that the hub has deleted since: that changes no other file, so there is no commit to tell by."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in names and any(fnmatch(name, pattern) for pattern in FILES):
            path.unlink()


def _is_needed(value: str, name: str) -> bool:
    """UserError for a file that would come to lie outside of the model's folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise UserError(f"{value!r} names a file outside of its folder, {name!r}; do not use this hub")
    return any(fnmatch(name, pattern) for pattern in FILES)


def _listed(api: Any, wanted: Wanted, branch: str) -> list[dict]:
    """The entries of the hub's list of files, with Path, Type, Size, Sha256, Revision and CommittedDate."""
    from modelscope_hub import errors

    try:
        return api.legacy.list_repo_files(wanted.name, "model", revision=branch)
    except errors.NotExistError as error:
        api.legacy.get_repo_info(wanted.name, "model")
        raise UserError(f"{wanted.value!r}: the model has no revision {branch!r}; correct it") from error


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _newest_commit(value: str, entries: list[dict]) -> str:
    """The commit that changed a file last. The client does not tell which one a branch or tag stands for."""
    dated = [(entry.get("CommittedDate") or 0, entry["Revision"]) for entry in entries if entry.get("Revision")]
    if not dated:
        raise UserError(f"{value!r} has no files, or the hub does not tell their commits; give another model or hub")
    return max(dated)[1]


def _note(repository: Path, revision: str) -> Path:
    """The file that says which commit a revision is, and that this has come whole."""
    return repository / "refs" / f"{quote(revision, safe='')}.json"


def _read(repository: Path, revision: str) -> dict | None:
    """What `_download` noted of a revision; None if it has not come whole."""
    try:
        return json.loads(_note(repository, revision).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _whole(repository: Path, revision: str) -> Path | None:
    """The folder of a revision that was downloaded, if it still has all files in their sizes."""
    if (note := _read(repository, revision)) is None:
        return None
    folder = repository / "snapshots" / note["commit"]
    files = [(folder / name, size) for name, size in note["files"].items()]
    return folder if all(file.is_file() and file.stat().st_size == size for file, size in files) else None


def _cause(error: Exception) -> BaseException:
    """What went wrong with the first file, if several could not be downloaded."""
    return next(iter((getattr(error, "failed_files", None) or {}).values()), error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's log: what it says of an error is told once, by us."""
    log = logging.getLogger("modelscope_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def token(wanted: Wanted) -> str:
    """The key to write with. UserError without one."""
    found = os.environ.get("MODELSCOPE_API_TOKEN")
    if not found:
        raise UserError(f"{wanted.value!r} needs a key that may write; set MODELSCOPE_API_TOKEN")
    return found


def push(directory: Path, wanted: Wanted, public: bool, license: str | None) -> str:
    """See `hub.push`."""
    try:
        from modelscope_hub import HubApi, errors
    except ImportError as error:
        raise UserError(f"{wanted.value!r} needs the client of ModelScope; pip install 'mengya[modelscope]'") from error
    value, name = wanted.value, wanted.name
    key = token(wanted)
    try:
        with _quiet():
            api = HubApi(token=key)
            if not api.repo_exists(name, "model"):  # uploading would make a public one, under Apache's license
                visibility = "public" if public else "private"
                api.create_repo(name, "model", visibility=visibility, license=license or "other")
            # The cache of an interrupted upload would lie between the files, and be uploaded with them.
            api.upload_folder(
                name, "model", directory, commit_message="Exported by Mengya", use_cache=False, disable_tqdm=True
            )
            return f"{api.legacy.endpoint}/models/{name}"
    except (errors.HubError, OSError) as error:
        cause = _cause(error)
        if isinstance(cause, (errors.AuthenticationError, errors.PermissionDeniedError)):
            raise UserError(
                f"MODELSCOPE_API_TOKEN may not write to {value!r}; make a key that may, or correct it"
            ) from error
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise UserError(
            f"{value!r} could not be uploaded ({reason}); the files are there: give them again with "
            f"modelscope upload {name} DIRECTORY"
        ) from error


def name_of(path: Path) -> str | None:
    """What of `fetch` gives this directory, with its revision; None if it is none of its."""
    note = _read(path.parent.parent, path.name) if path.parent.name == "snapshots" else None
    return f"ms:{note['name']}@{note['commit']}" if note else None
