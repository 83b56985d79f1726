"""The command line; nothing else parses arguments."""

import argparse
import errno
import io
import os
import re
import sys
from pathlib import Path

from mengya import __version__
from mengya.errors import UserError

_MACHINE_FAULTS = {
    errno.ENOSPC: "the disk is full; free space, then give the same command again",
    errno.EDQUOT: "the disk quota is used up; free space, then give the same command again",
    errno.EACCES: "no permission; change it, or choose another directory, e.g. with --out",
    errno.EPERM: "no permission; change it, or choose another directory, e.g. with --out",
    errno.EROFS: "the file system is read-only; choose another --out",
}


def _run(arguments: argparse.Namespace) -> None:
    from mengya import ranks
    from mengya.recipe import load_recipe
    from mengya.stage import run_recipe

    with ranks.group():
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        run_recipe(recipe, arguments.out or Path("runs") / recipe.name, arguments.until)


def _plan(arguments: argparse.Namespace) -> None:
    from mengya.plan import print_plan
    from mengya.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    print_plan(recipe, arguments.out or Path("runs") / recipe.name)


def _help(arguments: argparse.Namespace) -> None:
    from mengya.help import stage_help, stages_help

    print(stage_help(arguments.stage) if arguments.stage else stages_help())


def _chat(arguments: argparse.Namespace) -> None:
    from mengya.infer.sampling import Sampling
    from mengya.serve.terminal import chat

    sampling = Sampling(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
    )
    chat(arguments.model, sampling, arguments.system, arguments.ask)


def _export(arguments: argparse.Namespace) -> None:
    import torch

    from mengya.export import export

    export(arguments.source, arguments.out, getattr(torch, arguments.dtype) if arguments.dtype else None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mengya", description="Grow a small language model from raw text to a chat model. 从原始文本到聊天模型。"
    )
    parser.add_argument("--version", action="version", version=f"mengya {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for name, function, text in (
        ("run", _run, "run a recipe; the same command again goes on where it stopped"),
        ("plan", _plan, "what a recipe will need: parameters, FLOPs, memory, disk, time"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        command.add_argument("recipe", type=Path, metavar="RECIPE", help="a .toml file")
        command.add_argument("overrides", nargs="*", metavar="stage.key=value", help="change a value of the recipe")
        command.add_argument("--out", type=Path, help="output directory (default: runs/<recipe name>)")
        if name == "run":
            command.add_argument("--until", metavar="STAGE", help="stop after this stage")

    command = commands.add_parser("help", help="the stages, or the keys of one", description="Show a stage's keys.")
    command.set_defaults(function=_help)
    command.add_argument("stage", nargs="?", metavar="STAGE")

    command = commands.add_parser("chat", help="talk to a model", description="Talk to a model in the terminal.")
    command.set_defaults(function=_chat)
    command.add_argument("model", type=Path, metavar="MODEL_DIR")
    command.add_argument("--system", help="system prompt")
    command.add_argument("--temperature", type=float, default=0.3, help="0 is greedy (default: %(default)s)")
    command.add_argument("--top-k", type=int, default=0, help="0 is off (default: %(default)s)")
    command.add_argument("--top-p", type=float, default=0.9, help="default: %(default)s")
    command.add_argument("--repetition-penalty", type=float, default=1.0, help="default: %(default)s")
    command.add_argument("--max-new-tokens", type=int, default=256, help="default: %(default)s")
    command.add_argument("--seed", type=int)
    command.add_argument(
        "--ask",
        action="append",
        default=[],
        metavar="QUESTION",
        help="answer this question first (may be given several times); without a terminal, end after that",
    )

    text = "a Hugging Face directory from an unfinished training, a checkpoint, or a model in another type"
    command = commands.add_parser("export", help=text, description=text)
    command.set_defaults(function=_export)
    command.add_argument(
        "source",
        type=Path,
        metavar="RUN_OR_CHECKPOINT",
        help="runs/x/pretrain.partial, one of its checkpoints/step-*, or a model directory",
    )
    command.add_argument("out", type=Path, metavar="OUT", help="must not exist")
    command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: that of the weights")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 the user's fault or the machine's (with a remedy), 130 stopped by Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # a console that has no ✓ shows a question mark
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    parsed = _parse(arguments)
    try:
        parsed.function(parsed)
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        again = "; the same command goes on from here 已停止，重复同一命令即可继续" if parsed.function is _run else ""
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


def _machine_fault(error: Exception) -> str | None:
    """What to do if the machine is at fault. Libraries written in Rust name the fault in their message only."""
    if isinstance(error, OSError):
        number, where = error.errno, error.filename
    else:
        named = re.search(r"\(os error (\d+)\)", str(error))
        number, where = int(named[1]) if named else None, None
    remedy = _MACHINE_FAULTS.get(number) if number is not None else None
    return f"{remedy} ({where})" if remedy and where else remedy


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options may stand between overrides."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    overrides = [text for text in rest if "=" in text and not text.startswith("-")]
    if rest and (not hasattr(parsed, "overrides") or len(overrides) < len(rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides += overrides
    return parsed


def _fail(message: str) -> int:
    print(f"mengya: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
