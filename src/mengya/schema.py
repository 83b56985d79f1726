"""How configs are declared: frozen pydantic dataclasses whose attribute docstrings are the help text."""

import dataclasses
import json
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclasses.dataclass(frozen=True)
class Input:
    """Marks a field that names what a stage reads: "@stage", "@stage/file", or a path.

    `kind` is what must be there: what a stage makes ("corpus", "tokenizer", "shards", "model"), or "file": files of
    rows or text, which of a stage's directory are named one by one.
    """

    kind: str


@dataclasses.dataclass(frozen=True)
class Argument:
    """Marks a field of a command that is given by its place on the command line, not as --option."""

    metavar: str


class _How:
    """Marks a field that decides how a stage computes, not what: it may change while the stage is unfinished."""


HOW = _How()

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
"""Part of a whole."""
HeldoutShare = Annotated[float, Field(ge=0, lt=1)]
"""Part of the data that is measured on; never all of it."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type) -> Any:
    """Class decorator: frozen, keyword-only, unknown keys forbidden, numbers finite."""
    settings = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    return dataclass(frozen=True, kw_only=True, config=settings)(cls)


def fields_of(cls: type) -> dict[str, Any]:
    """pydantic's field descriptions (annotation, default, description) in order of declaration."""
    return cls.__pydantic_fields__  # type: ignore[attr-defined]


def description_of(cls: type, name: str) -> str:
    """A field's docstring, from the class that declares it (pydantic reads only the last class's source)."""
    owners = [fields_of(base) for base in cls.__mro__ if "__pydantic_fields__" in vars(base)]
    return next((fields[name].description for fields in owners if name in fields and fields[name].description), "")


def marked_input(field: Any) -> Input | None:
    """The mark of a field of `fields_of`, alone or in a union with None; None if it is not an input."""
    marks = [
        *field.metadata,
        *(m for option in get_args(field.annotation) for m in getattr(option, "__metadata__", ())),
    ]
    return next((mark for mark in marks if isinstance(mark, Input)), None)


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, field description, value) of every key of a config, those of nested tables included.

    A table that is marked as a whole is one key.
    """
    for name, field in fields_of(type(value)).items():
        inner = getattr(value, name)
        if hasattr(type(inner), "__pydantic_fields__") and HOW not in field.metadata:
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field, inner


def how_of(value: Any) -> dict[str, Any]:
    """The keys that decide how and not what, by dotted name."""
    return {name: inner for name, field, inner in leaves(value) if HOW in field.metadata}


def inputs_of(value: Any) -> dict[str, tuple[Input, list[str]]]:
    """Dotted name -> kind and values of each input that is set."""
    found = {}
    for name, field, inner in leaves(value):
        mark = marked_input(field)
        if mark and inner is not None:
            found[name] = (mark, [inner] if isinstance(inner, str) else list(inner))
    return found


def members(annotation: Any) -> list[Any]:
    """Of a union, without None; an annotation that is not a union is its only member."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [option for option in options if option is not type(None)]


def nested_config(annotation: Any) -> type | None:
    """The config class inside an annotation such as `ModelConfig | None` or `list[ParameterGroup]`."""
    options = [inner for option in members(annotation) for inner in (option, *get_args(option))]
    return next((option for option in options if hasattr(option, "__pydantic_fields__")), None)


def mentions_text(annotation: Any) -> bool:
    """Whether an annotation is str or contains it, as `list[str]` and `str | None` do."""
    return annotation is str or any(map(mentions_text, get_args(annotation)))


def names_of_keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted name of every key of a config class, those of nested tables included."""
    for name, field in fields_of(cls).items():
        yield prefix + name
        inner = nested_config(field.annotation)
        if inner is not None and get_origin(field.annotation) is not list:
            yield from names_of_keys(inner, f"{prefix}{name}.")


def as_json(value: Any) -> Any:
    """A config, or a part of one, as it comes back from JSON (tuples are lists), to be compared with a stored one."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def what_of(value: Any) -> dict:
    """The keys that decide what a stage makes, without its inputs, as nested tables."""
    tables: dict = {}
    for name, field, inner in leaves(value):
        if HOW in field.metadata or marked_input(field):
            continue
        *path, last = name.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[last] = as_json(inner)
    return tables
