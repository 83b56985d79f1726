"""The tables of a recipe: its TOML file laid over its base, and overrides from the command line laid over both."""

import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mengya.errors import UserError

BASE = "base"
"""The key that names the recipe whose tables a recipe starts from."""


def read_tables(path: Path, above: tuple[Path, ...] = ()) -> dict:
    """The tables of a recipe and of its base, merged key by key, those of the base first.

    `above`: the recipes that have led here. UserError: a file that is missing or is not TOML; a base that leads back
    to a recipe above it.
    """
    place = Path(os.path.realpath(path))
    if place in above:
        circle = " -> ".join(p.name for p in (*above[above.index(place) :], path))
        raise UserError(f"{above[-1]}: its base leads back to itself ({circle}); remove one of these `base` keys")
    tables = _read_toml(path, above)
    base = tables.pop(BASE, None)
    if base is None:
        return tables
    if not isinstance(base, str) or not base:
        raise UserError(f'{path}: base={base!r} must be the path of a recipe, e.g. base = "../small.toml"')
    return laid_over(read_tables(path.parent / Path(base).expanduser(), (*above, place)), tables)


def _read_toml(path: Path, above: tuple[Path, ...]) -> dict:
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"there is no recipe {str(path)!r}"
        if above:
            raise UserError(f"{above[-1]}: {what}; correct `base`, which is relative to the recipe's own folder")
        raise UserError(f"{what}; give the path of a .toml file, e.g. recipes/quickstart.toml")
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}{_remedy(str(error), text)}") from error


_WIDE = re.compile("[“”‘’：＝，；．［］｛｝]")


def _remedy(error: str, text: str) -> str:
    """What to do about a fault of TOML, at the end of a sentence; "" if what the parser says must do."""
    if "Cannot declare" in error:
        return '; a stage that comes twice needs another name, e.g. [sft_2] with stage = "sft"'
    if "Cannot overwrite" in error:
        return "; a key stands twice in its table: keep one of them"
    place = re.search(r"at line (\d+)", error)
    wide = _WIDE.search(text.split("\n")[int(place[1]) - 1].partition("#")[0]) if place else None
    return f"; {wide[0]!r} is Chinese punctuation: write it with the keys of a Latin keyboard" if wide else ""


def laid_over(lower: dict, upper: dict) -> dict:
    """The tables of both, key by key; where both have a value, that of `upper`."""
    merged = dict(lower)
    for key, value in upper.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = laid_over(merged[key], value) if both else value
    return merged


def apply_overrides(tables: dict, overrides: list[str], wants_text: Callable[[dict, list[str]], bool]) -> None:
    """Put `stage.key=value` into the tables, in order.

    `wants_text(tables, keys)`: whether a key is a string or a list of strings, so that 12 is the text "12".
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        path = [part.strip() for part in key.split(".")]
        if not equals or len(path) < 2 or not all(path):
            raise UserError(f"cannot read the override {text!r}; write it as stage.key=value")
        if path[0] not in tables:
            known = ", ".join(tables) or "none"
            raise UserError(f"the override {text!r} names the stage {path[0]!r}, but the recipe has only {known}")
        table = tables
        for part in path[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UserError(f"the override {text!r} goes through {part!r}, which is a value, not a table")
        table[path[-1]] = _value(value, wants_text(tables, path))


def _value(text: str, wants_text: bool) -> Any:
    """The value that TOML gives to `text`, in which a shell may have taken away the quotes around strings."""
    text = text.strip()
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = None
    brackets = text[:1] + text[-1:]
    if brackets == "[]" and (value is None or wants_text):
        return [_value(part, wants_text) for part in _parts(text[1:-1])]
    if brackets == "{}" and value is None:
        entries = [part.partition("=") for part in _parts(text[1:-1])]
        return {key.strip(): _value(inner, wants_text) for key, _, inner in entries}
    if isinstance(value, str) or (value is not None and not wants_text):
        return value
    return text[1:-1] if brackets in ('""', "''") else text  # a path with backslashes in quotes is not TOML


def _parts(text: str) -> list[str]:
    """What stands between commas outside of quotes and brackets."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and not quote and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]
