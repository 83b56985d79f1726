"""How configs are declared: frozen pydantic dataclasses whose attribute docstrings are the help text."""

import dataclasses
import json
from typing import Annotated, Any, dataclass_transform, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


class _Input:
    """Marks a field that names what a stage reads: "@stage", "@stage/file", or a path."""


INPUT = _Input()
InputPath = Annotated[str, INPUT]
InputPaths = Annotated[str | list[str], INPUT]


class _How:
    """Marks a field that decides how a stage computes, not what: it may change while the stage is unfinished."""


HOW = _How()

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
"""Part of a whole."""


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


def is_input(field: Any) -> bool:
    """Whether a field of `fields_of` is marked as an input (alone or in a union with None)."""
    if INPUT in field.metadata:
        return True
    return any(INPUT in getattr(option, "__metadata__", ()) for option in get_args(field.annotation))


def input_fields(cls: type) -> list[str]:
    return [name for name, field in fields_of(cls).items() if is_input(field)]


def how_fields(cls: type) -> list[str]:
    return [name for name, field in fields_of(cls).items() if HOW in field.metadata]


def nested_config(annotation: Any) -> type | None:
    """The config class inside an annotation such as `ModelConfig | None`."""
    options = (annotation, *get_args(annotation))
    return next((option for option in options if hasattr(option, "__pydantic_fields__")), None)


def as_dict(value: Any) -> dict:
    """A config as it comes back from JSON (tuples are lists), so that it can be compared with a stored one."""
    return json.loads(json.dumps(dataclasses.asdict(value)))
