"""Recipes: TOML and overrides -> ordered, validated stages."""

import difflib
import importlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mengya.errors import UserError
from mengya.schema import fields_of, input_fields
from mengya.stages import MODULES


@dataclass(frozen=True)
class StageSpec:
    """One table of a recipe."""

    name: str
    module: ModuleType
    config: Any

    @property
    def references(self) -> dict[str, list[str]]:
        """Input field -> its values: "@stage", "@stage/file" or a path; unset fields are left out."""
        values = {name: getattr(self.config, name) for name in input_fields(type(self.config))}
        return {name: [v] if isinstance(v, str) else list(v) for name, v in values.items() if v}


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
        return path, value.strip()


def _apply(tables: dict, overrides: list[str]) -> None:
    for text in overrides:
        path, value = _parse_override(text)
        if path[0] not in tables:
            known = ", ".join(tables) or "none"
            raise UserError(f"the override {text!r} names the stage {path[0]!r}, which the recipe lacks; it has {known}")
        table = tables
        for part in path[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UserError(f"the override {text!r} goes through {part!r}, which is a value, not a table")
        table[path[-1]] = value


def _explain(name: str, cls: type, error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        where = ".".join([name, *path])
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            owner: Any = cls
            for part in path[:-1]:
                owner = _nested(fields_of(owner)[part].annotation) or owner
            near = difflib.get_close_matches(path[-1], fields_of(owner), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"see `mengya help {name}`"
            lines.append(f"{where}: there is no such key; {hint}")
        elif problem["type"] in ("missing", "missing_argument"):
            lines.append(f"{where}: must be set; see `mengya help {name}`")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = "" if isinstance(problem["input"], dict) or "ArgsKwargs" in repr(problem["input"]) else (
                f" (it is {problem['input']!r})"
            )
            lines.append(f"{where}: {message[0].lower()}{message[1:]}{given}")
    return lines


def _nested(annotation: Any) -> type | None:
    """The config class inside an annotation such as `ModelConfig | None`."""
    for option in (annotation, *getattr(annotation, "__args__", ())):
        if hasattr(option, "__pydantic_fields__"):
            return option
    return None


def _check_references(stages: list[StageSpec]) -> list[str]:
    """An "@name" must be a stage above; a path must exist now rather than fail after an hour."""
    problems: list[str] = []
    seen: list[str] = []
    for stage in stages:
        for field, values in stage.references.items():
            for value in values:
                target = value[1:].partition("/")[0]
                if value.startswith("@") and target not in seen:
                    known = ", ".join(f"@{name}" for name in seen) or "none"
                    problems.append(f"{stage.name}.{field}: {value!r} is no stage above it; there: {known}")
                elif not value.startswith("@") and not any(ch in value for ch in "*?[") and not Path(value).exists():
                    problems.append(f"{stage.name}.{field}: {value!r} does not exist; correct the path")
        seen.append(stage.name)
    return problems


def parse_recipe(name: str, tables: dict, source: str, check_paths: bool = True) -> Recipe:
    """Validate every table; UserError lists all problems at once, each with its path."""
    stages, problems = [], []
    for table, values in tables.items():
        if table not in MODULES:
            near = difflib.get_close_matches(table, MODULES, 1)
            hint = f"did you mean [{near[0]}]?" if near else f"there are {', '.join(MODULES)}"
            problems.append(f"[{table}]: there is no such stage; {hint}")
            continue
        if not isinstance(values, dict):
            problems.append(f"{table}: must be a table; write [{table}]")
            continue
        module = importlib.import_module(MODULES[table])
        try:
            stages.append(StageSpec(table, module, TypeAdapter(module.Config).validate_python(values)))
        except ValidationError as error:
            problems += _explain(table, module.Config, error)
    if not tables:
        problems.append("it has no stage; see recipes/quickstart.toml")
    if check_paths and not problems:
        problems += _check_references(stages)
    if problems:
        raise UserError(f"{source} is not valid:\n" + "\n".join(f"  {line}" for line in problems))
    return Recipe(name, stages)


def load_recipe(path: Path, overrides: list[str], check_paths: bool = True) -> Recipe:
    """Read a TOML file and apply overrides."""
    if not path.is_file():
        raise UserError(f"there is no recipe {str(path)!r}; give the path of a .toml file, e.g. recipes/quickstart.toml")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    _apply(tables, overrides)
    return parse_recipe(path.stem, tables, str(path), check_paths)
