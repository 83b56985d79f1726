"""The command line, made from the configs of the commands; nothing else parses arguments."""

import argparse
import errno
import inspect
import io
import os
import re
import sys
from typing import Any, Literal, get_args, get_origin

from mengya import __version__
from mengya.commands import MODULES, Command, load_command
from mengya.errors import UserError
from mengya.schema import Argument, description_of, fields_of, members, nested_config

_SPINS = "1000"
"""How often a thread of GNU OpenMP looks for work before it sleeps, unless the user says otherwise. Its own default is
300 times as often: beside a busy program a waiting thread then holds the core that the work needs."""
_MACHINE_FAULTS = {
    errno.ENOSPC: "the disk is full; free space, then give the same command again",
    errno.EDQUOT: "the disk quota is used up; free space, then give the same command again",
    errno.EFBIG: "a file grew larger than this disk or the shell's limit (ulimit -f) allows; choose another --out",
    errno.ENAMETOOLONG: "a name is longer than the disk allows (often 255 bytes, 85 Chinese characters); shorten it",
    errno.ELOOP: "links lead back to themselves; correct the path",
    errno.EACCES: "no permission; change it, or choose another directory, e.g. with --out",
    errno.EPERM: "no permission; change it, or choose another directory, e.g. with --out",
    errno.EROFS: "the file system is read-only; choose another --out",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mengya", description="Grow a small language model from raw text to a chat model. 从原始文本到聊天模型。"
    )
    parser.add_argument("--version", action="version", version=f"mengya {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name in MODULES:
        text = inspect.cleandoc(load_command(name).config.__doc__ or "")
        command = commands.add_parser(name, help=f"{text[0].lower()}{text[1:]}".rstrip("."), description=text)
        _add_arguments(command, load_command(name).config, {})
    return parser


def _add_arguments(parser: argparse.ArgumentParser, cls: type, defaults: dict[str, Any]) -> None:
    """An argument for each field of a config; the fields of a table in it are options like the others."""
    for name, field in fields_of(cls).items():
        default = defaults.get(name, None if field.is_required() else field.get_default(call_default_factory=True))
        if inner := nested_config(field.annotation):
            _add_arguments(parser, inner, vars(default))
            continue
        kind = members(field.annotation)[0]
        text = inspect.cleandoc(description_of(cls, name) or "").replace("%", "%%")
        place = next((mark for mark in field.metadata if isinstance(mark, Argument)), None)
        options: dict[str, Any] = {"help": text, "default": default}
        if get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        elif get_origin(kind) is list:
            options |= {"nargs": "+" if field.is_required() else "*"} if place else {"action": "append"}
        elif kind is bool:
            options["action"] = "store_true"
        else:
            options["type"] = kind
        if place is None:
            unset = default is None or default is False or default == []
            options["help"] = text if unset else f"{text} Default: {default}."
            # A name that Python keeps for itself has an underscore behind it.
            parser.add_argument("--" + name.rstrip("_").replace("_", "-"), dest=name, **options)
        else:
            if not field.is_required():
                options.setdefault("nargs", "?")
            parser.add_argument(name, metavar=place.metavar, **options)


def _config(cls: type, values: dict[str, Any]) -> Any:
    """The config that parsed values make up."""
    own = {}
    for name, field in fields_of(cls).items():
        inner = nested_config(field.annotation)
        own[name] = _config(inner, values) if inner else values[name]
    return cls(**own)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 the user's fault or the machine's (with a remedy), 130 stopped by Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # a console that has no ✓ shows a question mark
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    command, config = _parse(arguments)
    _set_environment()
    try:
        command.run(config)
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        again = "; the same command goes on from here 已停止，重复同一命令即可继续" if command.resumes else ""
        print(f"\nstopped{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
        return 1
    except Exception as error:
        remedy = _machine_fault(error)
        if remedy is None:
            raise
        return _fail(remedy)
    return 0


def _set_environment() -> None:
    """What OpenMP reads when it is loaded, unless the user has set it."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def _machine_fault(error: Exception) -> str | None:
    """What to do if the machine is at fault. Libraries written in Rust name the fault in their message only."""
    if isinstance(error, OSError):
        number, where = error.errno, error.filename
    else:
        named = re.search(r"\(os error (\d+)\)", str(error))
        number, where = int(named[1]) if named else None, None
    remedy = _MACHINE_FAULTS.get(number) if number is not None else None
    return f"{remedy} ({where})" if remedy and where else remedy


def _parse(arguments: list[str] | None) -> tuple[Command, Any]:
    """Options may stand between overrides."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    overrides = [text for text in rest if "=" in text and not text.startswith("-")]
    if rest and (not hasattr(parsed, "overrides") or len(overrides) < len(rest)):
        hint = "; values of the recipe are changed by stage.key=value, e.g. pretrain.steps=300"
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint if hasattr(parsed, 'overrides') else ''}")
    if rest:
        parsed.overrides += overrides
    command = load_command(parsed.command)
    try:
        return command, _config(command.config, vars(parsed))
    except UserError as error:
        parser.error(str(error))


def _fail(message: str) -> int:
    print(f"mengya: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
