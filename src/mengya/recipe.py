"""Recipes: TOML and overrides -> ordered, validated stages."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs, ErrorDetails

from mengya import manifest
from mengya.errors import UserError
from mengya.schema import Input, fields_of, inputs_of, nested_config
from mengya.stage import Stage
from mengya.stages import MODULES, load_stage
from mengya.toml_tables import apply_overrides, read_tables


@dataclass(frozen=True)
class StageSpec:
    """One table of a recipe."""

    name: str
    """Of the table, and of its directory."""
    kind: str
    """The stage that it runs: its key `stage`, or else its name."""
    stage: Stage
    config: Any

    @property
    def references(self) -> dict[str, list[str]]:
        """Input field -> its values: "@stage", "@stage/file" or a path; unset fields are left out."""
        return {name: values for name, (_, values) in inputs_of(self.config).items()}


@dataclass(frozen=True)
class Recipe:
    name: str
    stages: list[StageSpec]


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
        if inner is not None and isinstance(part, str):  # a number is a place in a list
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
        tables = [name for name, field in fields_of(owner).items() if _has_key(field, keys[-1])]
        near = [f"{name}.{keys[-1]}" for name in tables] or difflib.get_close_matches(keys[-1], fields_of(owner), 1)
        return "there is no such key; " + (f"did you mean {near[0]!r}?" if near else f"see `mengya help {stage}`")
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"must be set; see `mengya help {stage}`"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, dict | ArgsKwargs) else f" (it is {given!r})"
    quotes = "; put it in quotes" if kind == "string_type" and not isinstance(given, dict | list) else ""
    return f"{message[0].lower()}{message[1:]}{shown}{quotes}"


def _has_key(field: Any, key: str) -> bool:
    """Whether a field is a table with such a key."""
    inner = nested_config(field.annotation)
    return inner is not None and key in fields_of(inner)


def _check_references(spec: StageSpec, above: dict[str, StageSpec | None], below: set[str], paths: bool) -> list[str]:
    """An "@name" must be a stage above that makes the right thing, a path must exist: now, not in an hour."""
    problems: list[str] = []
    for field, (mark, values) in inputs_of(spec.config).items():
        if not values or "" in values:
            problems.append(f'{spec.name}.{field}: names nothing; give a path or "@stage"')
        for value in filter(None, values):
            if value.startswith("@"):
                reason = _wrong_reference(value, mark, above, below)
            else:
                reason = _wrong_path(value, mark) if paths else None
            problems += [f"{spec.name}.{field}: {reason}"] if reason else []
    return problems


def _wrong_reference(value: str, mark: Input, above: dict[str, StageSpec | None], below: set[str]) -> str | None:
    """Why a reference cannot be followed; None if it can."""
    target, _, inside = value[1:].partition("/")
    if target not in above:
        fit = [n for n, spec in above.items() if spec is None or mark.kind == "file" or mark.kind in spec.stage.makes]
        known = ", ".join(f"@{name}" for name in fit) or "none"
        why = "stands below; a stage reads from stages above it" if target in below else "is not a stage above it"
        return f"{value!r} {why}; there: {known}"
    source = above[target]
    if source is None:
        return None
    if inside:
        return source.stage.missing(source.config, inside) if source.stage.missing else None
    if mark.kind == "file":
        return f'{value!r} is a whole directory; name a file in it, e.g. "{value}/conversations.jsonl"'
    if mark.kind not in source.stage.makes:
        fit = [f"@{n}" for n, spec in above.items() if spec is None or mark.kind in spec.stage.makes]
        return f"{value!r} makes {_a(source.stage.makes[0])}, not {_a(mark.kind)}; {_instead(mark.kind, fit)}"
    return None


def _instead(kind: str, names: list[str]) -> str:
    return f"use {' or '.join(names)}" if names else f"no stage above it makes {_a(kind)}: add one, or give a path"


def _a(kind: str) -> str:
    return kind if kind == "shards" else f"a {kind}"


def _wrong_path(value: str, mark: Input) -> str | None:
    """Why a path cannot be what a stage reads; None if it can."""
    found = manifest.matches(value)
    if not found:
        return f"{value!r} does not exist; correct the path"
    if mark.kind == "file":
        return None
    for path in found:
        if not path.is_dir():
            return f"{str(path)!r} is a file; give a directory that holds {_a(mark.kind)}"
        made = (manifest.read(path) or {}).get("makes")
        if made and mark.kind not in made:
            return f"{str(path)!r} holds {_a(made[0])}, not {_a(mark.kind)}; give a directory that does"
    return None


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
            return f"[{table}]: is not a name; use letters, digits, _ and -, e.g. [{kind}_2]"
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
        stage = load_stage(kind)
        values = {key: value for key, value in values.items() if key != "stage"}
        try:
            stages.append(StageSpec(table, kind, stage, TypeAdapter(stage.config).validate_python(values)))
        except ValidationError as error:
            problems += _explain(table, kind, stage.config, error)
    if not tables:
        problems.append("it has no stage; see recipes/quickstart.toml")
    valid = {stage.name: stage for stage in stages}
    above: dict[str, StageSpec | None] = {}
    for table in tables:
        twin = next((name for name in above if name.lower() == table.lower()), None)
        if twin:
            problems.append(f"[{table}]: [{twin}] has this name already on disks that ignore case; choose another name")
        if table in valid:
            problems += _check_references(valid[table], above, set(tables) - {table}, check_paths)
        above[table] = valid.get(table)  # a table with faults of its own can still be referred to
    if problems:
        raise UserError(f"{source} is not valid:\n" + "\n".join(f"  {line}" for line in problems))
    return Recipe(name, stages)


def load_recipe(path: Path, overrides: list[str], check_paths: bool = True) -> Recipe:
    """Read a TOML file and its base, apply overrides, validate."""
    tables = read_tables(path)
    apply_overrides(tables, overrides)
    return parse_recipe(path.stem, tables, str(path), check_paths)
