"""Recipes: TOML and overrides -> ordered, validated stages."""

import dataclasses
import difflib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs, ErrorDetails

from mengya import hub, manifest
from mengya.errors import UserError
from mengya.schema import Input, fields_of, inputs_of, mentions_text, names_of_keys, nested_config
from mengya.stage import Promise, Stage
from mengya.stages import MODULES, load_stage
from mengya.stages.known import look
from mengya.toml_tables import apply_overrides, read_tables

T = TypeVar("T")


@dataclass(frozen=True)
class StageSpec:
    """One table of a recipe."""

    name: str
    """Of the table, and of its directory."""
    kind: str
    """The stage that it runs: its key `stage`, or else its name."""
    stage: Stage
    config: Any
    promise: Promise | None = None
    """What is known of its directory before it is filled; None: nothing."""

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
        key = ".".join([name, *keys])
        line = f"{key}: {_message(kind, cls, key, owner, problem)}"
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


def _message(stage: str, cls: type, key: str, owner: type, problem: ErrorDetails) -> str:
    kind, given = problem["type"], problem["input"]
    if kind == "unexpected_keyword_argument":
        meant = _meant(cls, key, owner)
        return "there is no such key; " + (f"did you mean {meant!r}?" if meant else f"see `mengya help {stage}`")
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"must be set; see `mengya help {stage}`"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, dict | ArgsKwargs) else f" (it is {given!r})"
    remedy = ""
    if kind == "string_type" and not isinstance(given, dict | list):
        remedy = "; put it in quotes"
    elif kind == "list_type" and isinstance(given, str):
        remedy = f"; write a list: {json.dumps([given], ensure_ascii=False)}"
    return f"{message[0].lower()}{message[1:]}{shown}{remedy}"


def _meant(cls: type, key: str, owner: type) -> str | None:
    """The key of a stage that was probably meant: of the same name in another table, or of a similar name."""
    table, _, _ = key.partition(".")
    above, _, last = key.rpartition(".")
    names = list(names_of_keys(cls))
    for name in names:
        if name.rpartition(".")[2] == last:
            return f"{table}.{name}"
    near = difflib.get_close_matches(last, fields_of(owner), 1)
    if near:
        return f"{above}.{near[0]}"
    lasts = {name.rpartition(".")[2]: name for name in reversed(names)}
    near = difflib.get_close_matches(last, lasts, 1)
    return f"{table}.{lasts[near[0]]}" if near else None


@dataclass(frozen=True)
class _Wiring:
    """What references may lead to."""

    above: dict[str, StageSpec | None]
    """The stages above, by name; None for one whose keys are wrong."""
    below: set[str]
    paths: bool
    """Whether paths must exist."""
    looks: dict[tuple[str, Path], Promise]
    """What was found in directories so far."""

    def follow(self, value: str, mark: Input) -> Promise:
        """What is known of a reference or a path. UserError if it cannot be what the stage reads."""
        if value.startswith("@"):
            return self._reference(value, mark)
        return self._path(value, mark) if self.paths else Promise()

    def _reference(self, value: str, mark: Input) -> Promise:
        target, _, inside = value[1:].partition("/")
        if target not in self.above:
            known = [n for n, s in self.above.items() if s is None or mark.kind == "file" or mark.kind in s.stage.makes]
            there = ", ".join(f"@{name}" for name in known) or "none"
            below = "stands below; a stage reads from stages above it"
            raise UserError(f"{value!r} {below if target in self.below else 'is not a stage above it'}; there: {there}")
        source = self.above[target]
        if source is None:
            return Promise()
        if mark.kind == "file":
            return _file_of(source, inside, value)
        if inside:
            raise UserError(f'{value!r} is a part of a directory; give the whole, "@{target}"')
        if mark.kind not in source.stage.makes:
            fit = [f"@{n}" for n, s in self.above.items() if s is None or mark.kind in s.stage.makes]
            raise UserError(f"{value!r} makes {_a(source.stage.makes[0])}, not {_a(mark.kind)}; {_instead(mark, fit)}")
        return source.promise or Promise()

    def _path(self, value: str, mark: Input) -> Promise:
        if hub.is_remote(value) and mark.kind != "model":
            raise UserError(f"{value!r} is a model of the hub, not {_a(mark.kind)}")
        path = hub.located(value)
        found = manifest.matches(str(path))
        if not found:
            raise UserError(f"{value!r} does not exist; correct the path")
        if mark.kind == "file":
            for each in found:
                _check_holds_rows(each)
            return Promise(path=path)
        if not path.exists():
            raise UserError(f"{value!r} is a pattern; name each directory by itself")
        if not path.is_dir():
            raise UserError(f"{str(path)!r} is a file; give a directory that holds {_a(mark.kind)}")
        made = (manifest.read(path) or {}).get("makes")
        if made and mark.kind not in made:
            raise UserError(f"{str(path)!r} holds {_a(made[0])}, not {_a(mark.kind)}; give a directory that does")
        key = mark.kind, path
        if key not in self.looks:
            self.looks[key] = look(mark.kind, path)
        return self.looks[key]


def _file_of(source: StageSpec, name: str, value: str) -> Promise:
    """What is known of a file that a stage will write. UserError if it will not."""
    files, absent = (source.promise.files, source.promise.absent) if source.promise else ({name: Promise()}, {})
    if name and name in files:
        return files[name]
    names = ", ".join(f"@{source.name}/{file}" for file in files if file)
    instead = f"there: {names}" if names else f"[{source.name}] writes none that others read; give a path"
    if not name:
        raise UserError(f"{value!r} is a whole directory; name a file in it; {instead}")
    raise UserError(f"{name} {absent[name]}" if name in absent else f"{value!r} will not be there; {instead}")


def _check_holds_rows(path: Path) -> None:
    """UserError for a directory that a stage wrote, or a model from elsewhere, where files of rows are wanted."""
    record = manifest.read(path) if path.is_dir() else None
    if record:
        kind = (record.get("makes") or ["result"])[0]
        raise UserError(f"{str(path)!r} holds {_a(kind)}, not files of rows; name a file in it")
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        raise UserError(f"{str(path)!r} holds a model, not files of rows; name a file, or another folder")


def _instead(mark: Input, names: list[str]) -> str:
    kind = _a(mark.kind)
    return f"use {' or '.join(names)}" if names else f"no stage above it makes {kind}: add one, or give a path"


def _a(kind: str) -> str:
    return kind if kind == "shards" else f"a {kind}"


def _with_promise(spec: StageSpec, wiring: _Wiring, to_run: bool, now: bool) -> tuple[StageSpec, list[str]]:
    """The stage with what is known of its directory, and all that keeps it from being filled.

    `to_run`: its inputs are checked not only by kind; `now`: it will run in these processes.
    """
    problems: list[str] = []

    def noted(where: str, question: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return question(*arguments)
        except UserError as error:
            problems.append(f"{where}: {error}".replace("\n", "\n    "))
            return None

    inputs: dict[str, list[Promise]] = {}
    for field, (mark, values) in inputs_of(spec.config).items():
        if not values or "" in values:
            problems.append(f'{spec.name}.{field}: names nothing; give a path or "@stage"')
        found = [noted(f"{spec.name}.{field}", wiring.follow, value, mark) for value in values if value]
        inputs[field] = [promise or Promise() for promise in found or [None]]
    stage, promise = spec.stage, None
    if to_run:
        promise = noted(spec.name, stage.promise, spec.config, inputs) if stage.promise else None
        for check in stage.checks:
            noted(spec.name, check, spec.config, inputs)
    if now and stage.ready:
        noted(spec.name, stage.ready, spec.config)
    return dataclasses.replace(spec, promise=promise), list(dict.fromkeys(problems))


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


def _validated(table: str, values: Any) -> tuple[StageSpec | None, list[str]]:
    """The stage of a table, as far as its own keys say, or what is wrong with them."""
    if not isinstance(values, dict):
        if table in MODULES:
            return None, [f"{table}: must be a table; write [{table}]"]
        return None, [f"{table}: stands in no table; put it below the stage that it belongs to, e.g. [pretrain]"]
    kind = values.get("stage", table)
    problem = _wrong_stage(table, kind)
    if problem:
        return None, [problem]
    stage = load_stage(kind)
    values = {key: value for key, value in values.items() if key != "stage"}
    try:
        return StageSpec(table, kind, stage, TypeAdapter(stage.config).validate_python(values)), []
    except ValidationError as error:
        return None, _explain(table, kind, stage.config, error)


def parse_recipe(
    name: str,
    tables: dict,
    source: str,
    check_paths: bool = True,
    out: Path | None = None,
    until: str | None = None,
) -> Recipe:
    """Validate every table; UserError lists all problems at once, each with its path.

    With `out`, where a run begins now, also what these processes cannot run: of stages that are not in `out` yet. Of
    stages after `until`, where the run ends, only the keys and the kinds of inputs are validated.
    """
    problems = [] if tables else ["it has no stage; see recipes/quickstart.toml"]
    above: dict[str, StageSpec | None] = {}
    looks: dict[tuple[str, Path], Promise] = {}
    names = list(tables)
    to_run = names[: names.index(until) + 1] if until in names else names
    for table, values in tables.items():
        spec, found = _validated(table, values)
        twin = next((name for name in above if name.lower() == table.lower()), None)
        if twin:
            found.append(f"[{table}]: [{twin}] has this name already on disks that ignore case; choose another name")
        if spec is not None:
            now = out is not None and table in to_run and not (out / table).exists()
            wiring = _Wiring(above, set(tables) - {table}, check_paths, looks)
            spec, more = _with_promise(spec, wiring, table in to_run, now)
            found += more
        above[table] = spec  # a table with faults of its own can still be referred to
        problems += found
    if problems:
        raise UserError(f"{source} is not valid:\n" + "\n".join(f"  {line}" for line in problems))
    return Recipe(name, [spec for spec in above.values() if spec is not None])


def load_recipe(
    path: Path, overrides: list[str], check_paths: bool = True, out: Path | None = None, until: str | None = None
) -> Recipe:
    """Read a TOML file and its base, apply overrides, validate as `parse_recipe`."""
    tables = read_tables(path)
    apply_overrides(tables, overrides, _wants_text)
    return parse_recipe(path.stem, tables, str(path), check_paths, out, until)


def _wants_text(tables: dict, keys: list[str]) -> bool:
    """Whether the key of a stage that `keys` lead to is a string, or a list of strings."""
    table, *inner = keys
    kind = tables[table].get("stage", table) if isinstance(tables[table], dict) else None
    if not isinstance(kind, str) or kind not in MODULES:
        return False
    annotation: Any = load_stage(kind).config
    for key in inner:
        cls = nested_config(annotation)
        field = fields_of(cls).get(key) if cls else None
        annotation = field.annotation if field else None
    return mentions_text(annotation)
