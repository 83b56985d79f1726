"""mengya help [STAGE]: the stages, or the schema of one as commented TOML."""

import importlib.util
import inspect
import json
import textwrap
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from mengya.commands import Command
from mengya.errors import UserError
from mengya.schema import Argument, config, description_of, fields_of, members, nested_config
from mengya.stages import MODULES, load_stage


@config
class Config:
    """Show the stages, or the keys of one."""

    stage: Annotated[str | None, Argument("STAGE")] = None


def run(config: Config) -> None:
    print(stage_help(config.stage) if config.stage else stages_help())


def stages_help() -> str:
    """One line a stage, from the first line of its module."""
    lines = ["Stages, in the order in which a recipe usually has them:", ""]
    for name, path in MODULES.items():
        lines.append(f"  {name:<10} {_summary(path)}")
    lines += [
        "",
        "mengya help STAGE shows the keys of one. A recipe is a TOML file with one table per stage;",
        'mengya run RECIPE stage.key=value changes a value. "@name" stands for the output of the stage [name].',
        'A stage that comes twice needs another name and says what it is: [pretrain_zh] with stage = "pretrain".',
    ]
    return "\n".join(lines)


def _summary(path: str) -> str:
    """The first docstring line, read from the source so that no torch is imported."""
    spec = importlib.util.find_spec(path)
    assert spec and spec.origin
    with open(spec.origin, encoding="utf-8") as file:
        return file.readline().strip().strip('"')


def stage_help(name: str) -> str:
    """Commented TOML with every key of a stage and its default."""
    if name not in MODULES:
        raise UserError(f"there is no stage {name!r}; there are {', '.join(MODULES)}")
    cls = load_stage(name).config
    return "\n".join([f"# {cls.__doc__}", f"[{name}]", *_table(cls, name)])


def _table(cls: type, prefix: str) -> list[str]:
    lines: list[str] = []
    nested: list[str] = []
    for name, field in fields_of(cls).items():
        inner = nested_config(field.annotation)
        if inner is not None:
            optional = " (optional)" if not field.is_required() else ""
            about = _comment(f"{inspect.cleandoc(inner.__doc__ or '')}{optional}")
            header = f"[[{prefix}.{name}]]" if get_origin(field.annotation) is list else f"[{prefix}.{name}]"
            nested += ["", *about, header, *_table(inner, f"{prefix}.{name}")]
            continue
        lines += _comment(description_of(cls, name))
        lines.append(f"{name} = {_value(field)}")
    return lines + nested


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 100)]


def _value(field: Any) -> str:
    default = field.default if field.default is not PydanticUndefined else None
    kind = _kind(field.annotation)
    if field.is_required():
        return f"...  # required: {kind}"
    if default is None:
        return f"...  # unset: {kind}"
    if isinstance(default, tuple):
        default = list(default)
    choices = f"  # {kind}" if get_origin(field.annotation) is Literal else ""
    return json.dumps(default, ensure_ascii=False) + choices


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(map(repr, get_args(annotation)))
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if members(annotation) != [annotation]:
        return " | ".join(dict.fromkeys(map(_kind, members(annotation))))
    return str(annotation)  # list[str]


COMMAND = Command(Config, run)
