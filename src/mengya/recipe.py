"""Recipes: TOML and overrides -> ordered, validated stages."""

import difflib
import glob
import importlib
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs, ErrorDetails

from mengya.errors import UserError
from mengya.schema import fields_of, input_fields, nested_config
from mengya.stages import MODULES


@dataclass(frozen=True)
class StageSpec:
    """One table of a recipe."""

    name: str
    """Of the table, and of its directory."""
    kind: str
    """The stage that it runs: its key `stage`, or else its name."""
    module: ModuleType
    config: Any

    @property
    def references(self) -> dict[str, list[str]]:
        """Input field -> its values: "@stage", "@stage/file" or a path; unset fields are left out."""
        values = {name: getattr(self.config, name) for name in input_fields(type(self.config))}
        return {name: [v] if isinstance(v, str) else list(v) for name, v in values.items() if v is not None}


@dataclass(frozen=True)
class Recipe:
    name: str
    stages: list[StageSpec]


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


def _apply(tables: dict, overrides: list[str]) -> None:
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


def _explain(name: str, kind: str, cls: type, error: ValidationError) -> list[str]:
    """One line a problem: where, what, and what to do."""
    lines: dict[tuple, tuple[int, str]] = {}
    for problem in error.errors():
        keys, owner, of_union = _locate(cls, problem["loc"])
        line = f"{'.'.join([name, *keys])}: {_message(kind, keys, owner, problem)}"
        # Every member of a union complains; the one that went deepest was meant.
        place = (keys[0],) if of_union else (*keys, problem["msg"])
        if place not in lines or lines[place][0] < len(keys):
            lines[place] = (len(keys), line)
    return [line for _, line in lines.values()]


def _locate(cls: type, location: tuple[int | str, ...]) -> tuple[list[str], type, bool]:
    """The keys that lead to a problem, the config class that has the last key, and whether a union was on the way."""
    keys: list[str] = []
    owner, inner, of_union = cls, nested_config(cls), False
    for part in location:
        if inner is not None:
            owner = inner
            field = fields_of(owner).get(str(part))
            inner = nested_config(field.annotation) if field else None
        elif isinstance(part, str):  # pydantic's name of a member of a union, not a key
            of_union = True
            continue
        keys.append(str(part))
    return keys, owner, of_union


def _message(stage: str, keys: list[str], owner: type, problem: ErrorDetails) -> str:
    kind, given = problem["type"], problem["input"]
    if kind == "unexpected_keyword_argument":
        near = difflib.get_close_matches(keys[-1], fields_of(owner), 1)
        return "there is no such key; " + (f"did you mean {near[0]!r}?" if near else f"see `mengya help {stage}`")
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"must be set; see `mengya help {stage}`"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, dict | ArgsKwargs) else f" (it is {given!r})"
    quotes = "; put it in quotes" if kind == "string_type" and not isinstance(given, dict | list) else ""
    return f"{message[0].lower()}{message[1:]}{shown}{quotes}"


def matches(path: str) -> list[Path]:
    """What a path or a glob names now, sorted; `~` is the home folder."""
    path = os.path.expanduser(path)
    return [Path(path)] if os.path.exists(path) else sorted(map(Path, glob.glob(path, recursive=True)))


def _check_references(stage: StageSpec, above: dict[str, StageSpec | None], check_paths: bool) -> list[str]:
    """An "@name" must be a stage above, and a file in it one that it writes; a path must exist: now, not in an hour."""
    problems: list[str] = []
    for field, values in stage.references.items():
        where = f"{stage.name}.{field}"
        if not values or "" in values:
            problems.append(f'{where}: names nothing; give a path or "@stage"')
        for value in filter(None, values):
            if value.startswith("@"):
                target, _, inside = value[1:].partition("/")
                if target not in above:
                    known = ", ".join(f"@{name}" for name in above) or "none"
                    problems.append(f"{where}: {value!r} is no stage above it; there: {known}")
                    continue
                source = above[target]
                if source and inside and hasattr(source.module, "missing"):
                    reason = source.module.missing(source.config, inside)
                    problems += [f"{where}: {reason}"] if reason else []
            elif check_paths and not matches(value):
                problems.append(f"{where}: {value!r} does not exist; correct the path")
    return problems


def _wrong_stage(table: str, kind: object) -> str | None:
    """Why the table cannot be a stage of this kind; None if it can."""
    if kind != table:
        if table in MODULES:
            return f"{table}.stage: [{table}] is a stage itself; give a table that runs {kind!r} a name of its own"
        if not isinstance(kind, str) or kind not in MODULES:
            near = difflib.get_close_matches(str(kind), MODULES, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(MODULES)}"
            return f"{table}.stage: there is no stage {kind!r}; {hint}"
        if not re.fullmatch(r"\w[\w-]*", table):  # it names a directory, and stands in "@name/file" and name.key=value
            return f"[{table}]: is no name; use letters, digits, _ and -, e.g. [{kind}_2]"
    elif table not in MODULES:
        meant = max((name for name in MODULES if table.startswith(name)), key=len, default=None)
        if meant:
            return f'[{table}]: there is no such stage; say which one it is, e.g. stage = "{meant}"'
        near = difflib.get_close_matches(table, MODULES, 1)
        hint = f"did you mean [{near[0]}]?" if near else f"there are {', '.join(MODULES)}"
        return f"[{table}]: there is no such stage; {hint}"
    return None


def parse_recipe(name: str, tables: dict, source: str, check_paths: bool = True) -> Recipe:
    """Validate every table; UserError lists all problems at once, each with its path."""
    stages, problems = [], []
    for table, values in tables.items():
        if not isinstance(values, dict):
            problems.append(f"{table}: must be a table; write [{table}]")
            continue
        kind = values.get("stage", table)
        problem = _wrong_stage(table, kind)
        if problem:
            problems.append(problem)
            continue
        module = importlib.import_module(MODULES[kind])
        values = {key: value for key, value in values.items() if key != "stage"}
        try:
            stages.append(StageSpec(table, kind, module, TypeAdapter(module.Config).validate_python(values)))
        except ValidationError as error:
            problems += _explain(table, kind, module.Config, error)
    if not tables:
        problems.append("it has no stage; see recipes/quickstart.toml")
    valid = {stage.name: stage for stage in stages}
    above: dict[str, StageSpec | None] = {}
    for table in tables:
        if table in valid:
            problems += _check_references(valid[table], above, check_paths)
        above[table] = valid.get(table)  # a table with faults of its own can still be referred to
    if problems:
        raise UserError(f"{source} is not valid:\n" + "\n".join(f"  {line}" for line in problems))
    return Recipe(name, stages)


def load_recipe(path: Path, overrides: list[str], check_paths: bool = True) -> Recipe:
    """Read a TOML file and apply overrides."""
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"there is no recipe {str(path)!r}"
        raise UserError(f"{what}; give the path of a .toml file, e.g. recipes/quickstart.toml")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    _apply(tables, overrides)
    return parse_recipe(path.stem, tables, str(path), check_paths)
