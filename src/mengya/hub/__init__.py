"""Models from a hub in place of a path: "hf:owner/name" of Hugging Face's, "ms:owner/name" of ModelScope, each with
"@revision" or without. What has been downloaded once is not downloaded again. And models to a hub."""

from pathlib import Path

from mengya.errors import UserError
from mengya.hub import hugging_face, modelscope
from mengya.hub.wanted import parse
from mengya.metrics import say

_HUBS = {"hf": hugging_face, "ms": modelscope}


def is_remote(value: str) -> bool:
    return value.partition(":")[0] in _HUBS and ":" in value


def fetch(value: str) -> Path:
    """The local directory of a model; what is not there yet is downloaded. UserError if it cannot be had."""
    wanted = parse(value)
    found = _HUBS[value.partition(":")[0]].fetch(wanted)
    if not (found / "config.json").is_file():
        raise UserError(f"{value!r} has no config.json: it is not a model that transformers loads; give another")
    if not any(found.glob("*.safetensors")):
        raise UserError(
            f"{value!r} has no weights as safetensors; pickles, which can run any code, are not read: give another "
            "model or revision, or convert it and give its directory"
        )
    if wanted.revision != found.name:
        say(f"{value} is revision {found.name}")
    return found


def check_target(value: str) -> None:
    """UserError if nothing can be pushed to the repository `value`, as far as this can be known beforehand."""
    if not is_remote(value):
        raise UserError(f"--push {value} names no hub; give hf:owner/name or ms:owner/name")
    wanted = parse(value)
    if wanted.revision is not None:
        raise UserError(f"--push {value} names a revision; give {value.partition('@')[0]}: a commit is added to it")
    _HUBS[value.partition(":")[0]].token(wanted)


def push(directory: Path, value: str, public: bool, license: str | None = None) -> str:
    """Upload the files of a directory into the repository "hf:owner/name" or "ms:owner/name", which is made, private
    unless `public`, if there is none; its address. Files of other names that are there stay. UserError if it fails.

    `license`: what a hub is told that asks for it beside the model card."""
    check_target(value)
    return _HUBS[value.partition(":")[0]].push(directory, parse(value), public, license)


def located(value: str) -> Path:
    """The path that a recipe names, or the local copy of a model from a hub."""
    return fetch(value) if is_remote(value) else Path(value).expanduser()


def name_of(path: Path) -> str | None:
    """What `fetch` was asked for to give this directory, with its revision; None if it is no download."""
    return next((name for hub in _HUBS.values() if (name := hub.name_of(path))), None)


def remedy(directory: Path) -> str:
    """What to do where a file of a model is missing or damaged."""
    if name_of(directory) is None:
        return "copy the model again"
    return f"delete {directory.parent.parent}, and the model is downloaded again"
