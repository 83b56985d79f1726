"""The tables of a recipe: its TOML file laid over its base, and overrides from the command line laid over both."""

import tomllib
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
    if path.resolve() in above:
        circle = " -> ".join(p.name for p in (*above[above.index(path.resolve()) :], path))
        raise UserError(f"{above[-1]}: its base leads back to itself ({circle}); remove one of these `base` keys")
    tables = _read_toml(path, above)
    base = tables.pop(BASE, None)
    if base is None:
        return tables
    if not isinstance(base, str) or not base:
        raise UserError(f'{path}: base={base!r} must be the path of a recipe, e.g. base = "../small.toml"')
    return laid_over(read_tables(path.parent / Path(base).expanduser(), (*above, path.resolve())), tables)


def _read_toml(path: Path, above: tuple[Path, ...]) -> dict:
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"there is no recipe {str(path)!r}"
        if above:
            raise UserError(f"{above[-1]}: {what}; correct `base`, which is relative to the recipe's own folder")
        raise UserError(f"{what}; give the path of a .toml file, e.g. recipes/quickstart.toml")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        twice = "Cannot declare" in str(error) or "Cannot overwrite" in str(error)
        remedy = '; a stage that comes twice needs another name, e.g. [sft_2] with stage = "sft"' if twice else ""
        raise UserError(f"{path} is not valid TOML: {error}{remedy}") from error


def laid_over(lower: dict, upper: dict) -> dict:
    """The tables of both, key by key; where both have a value, that of `upper`."""
    merged = dict(lower)
    for key, value in upper.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = laid_over(merged[key], value) if both else value
    return merged


def _parse_override(text: str) -> tuple[list[str], Any]:
    """`sft.optim.lr=1e-5` -> (["sft", "optim", "lr"], 1e-05). What is no TOML value is a bare string (a path, say)."""
    key, equals, value = text.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or len(path) < 2 or not all(path):
        raise UserError(f"cannot read the override {text!r}; write it as stage.key=value")
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        value = value.strip()
    if (value[:1], value[-1:]) in (("[", "]"), ("{", "}")):  # a shell has eaten the quotes inside
        example = f"""'{key.strip()}=["one", "two"]'"""
        raise UserError(f"cannot read the list in {text!r}; quote its strings and the whole for the shell: {example}")
    return path, value


def apply_overrides(tables: dict, overrides: list[str]) -> None:
    for text in overrides:
        path, value = _parse_override(text)
        if path[0] not in tables:
            known = ", ".join(tables) or "none"
            raise UserError(f"the override {text!r} names the stage {path[0]!r}, but the recipe has only {known}")
        table = tables
        for part in path[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UserError(f"the override {text!r} goes through {part!r}, which is a value, not a table")
        table[path[-1]] = value
