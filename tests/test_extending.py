"""A new stage and a new command are each one file and one entry of a list; nothing else of the package is touched."""

import json
import sys
from types import ModuleType

import pytest

from mengya import cli, commands, manifest, stages

SHOUT = '''
"""Documents -> the same in capitals."""

from pathlib import Path
from typing import Annotated

from mengya.errors import UserError
from mengya.schema import HOW, Input, config
from mengya.stage import Estimate, Stage


@config
class Voice:
    """How it sounds."""

    like: Annotated[str, Input("corpus")] | None = None
    """A corpus whose first letter opens each line."""
    mark: str = "!"


@config
class Config:
    """Shout."""

    corpus: Annotated[str, Input("corpus")] = "@corpus"
    voice: Voice = Voice()
    threads: Annotated[int, HOW] = 1


def run(config, inputs, out: Path) -> None:
    (corpus,) = inputs["corpus"]
    opening = inputs["voice.like"][0].joinpath("train.jsonl").read_text()[0] if "voice.like" in inputs else ""
    text = (corpus / "train.jsonl").read_text(encoding="utf-8").upper()
    (out / "shouted.txt").write_text(opening + text + config.voice.mark, encoding="utf-8")


def estimate(config, sources, promise):
    (corpus,) = sources["corpus"]
    return Estimate(seconds=7, disk=2 * corpus.text, text=corpus.text)


def check(config, inputs):
    if len(config.voice.mark) > 3:
        raise UserError(f"voice.mark={config.voice.mark!r} is too loud; use at most 3 signs")


STAGE = Stage(config=Config, run=run, makes=("noise",), estimate=estimate, checks=(check,))
'''

GREET = '''
"""mengya greet NAME: say hello."""

from typing import Annotated, Literal

from mengya.commands import Command
from mengya.schema import Argument, config


@config
class Config:
    """Say hello."""

    name: Annotated[str, Argument("NAME")]
    """Whom to greet."""
    times: int = 1
    """How often."""
    language: Literal["zh", "en"] = "zh"
    loud: bool = False
    also: list[str] | None = None


def run(config):
    word = {"zh": "你好", "en": "hello"}[config.language]
    print(*[f"{word} {config.name}{'!' * config.loud}"] * config.times, sep="\\n")


COMMAND = Command(Config, run)
'''

RECIPE = """
[corpus]
path = "text.txt"
heldout = 0.4

[shout]
voice.like = "@corpus"
"""


@pytest.fixture
def one_file(tmp_path, monkeypatch):
    """one_file(name, text, the list): a module as a file of its own, and its entry."""

    def add(name: str, text: str, entries: dict) -> ModuleType:
        (tmp_path / f"{name}_module.py").write_text(text.lstrip(), encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setitem(entries, name, f"{name}_module")
        monkeypatch.delitem(sys.modules, f"{name}_module", raising=False)

    return add


@pytest.fixture
def shouting(one_file, tmp_path, monkeypatch):
    """A folder with a recipe that uses a stage of its own."""
    one_file("shout", SHOUT, stages.MODULES)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("spring\n\n" * 20_000, encoding="utf-8")
    (tmp_path / "r.toml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def test_a_stage_runs_is_cached_and_compared(shouting, capsys):
    assert cli.main(["run", "r.toml"]) == 0
    assert (shouting / "runs/r/shout/shouted.txt").read_text().startswith('{{"TEXT": "SPRING')
    record = manifest.read(shouting / "runs/r/shout")
    assert record["makes"] == ["noise"] and record["how"] == {"threads": 1}
    assert [entry["field"] for entry in record["inputs"]] == ["corpus", "voice.like"]
    assert cli.main(["run", "r.toml", "shout.threads=2"]) == 0
    assert "✓ shout: already there" in capsys.readouterr().out
    assert cli.main(["run", "r.toml", "shout.voice.mark=?"]) == 2
    assert "voice.mark was '!', is now '?'" in capsys.readouterr().err


def test_a_stage_is_helped_planned_and_checked(shouting, capsys):
    assert cli.main(["help", "shout"]) == 0
    assert 'like = ...  # unset: str\nmark = "!"' in capsys.readouterr().out
    assert cli.main(["help"]) == 0
    assert "  shout      Documents -> the same in capitals." in capsys.readouterr().out
    assert cli.main(["plan", "r.toml"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["disk_bytes"] == 3 * (shouting / "text.txt").stat().st_size
    assert cli.main(["run", "r.toml", "shout.voice.mark=!!!!"]) == 2
    assert "shout: voice.mark='!!!!' is too loud; use at most 3 signs" in capsys.readouterr().err
    assert not (shouting / "runs/r/corpus").exists()


def test_the_references_of_a_stage_are_typed(shouting, capsys):
    (shouting / "r.toml").write_text(f'{RECIPE}\n[two]\nstage = "shout"\nvoice.like = "@shout"\n', encoding="utf-8")
    assert cli.main(["run", "r.toml"]) == 2
    assert "two.voice.like: '@shout' makes a noise, not a corpus; use @corpus" in capsys.readouterr().err


def test_a_command(one_file, capsys):
    one_file("greet", GREET, commands.MODULES)
    assert cli.main(["greet", "萌芽", "--times", "2", "--language", "en", "--loud"]) == 0
    assert capsys.readouterr().out == "hello 萌芽!\nhello 萌芽!\n"
    for wrong in (["greet"], ["greet", "x", "--language", "fr"], ["greet", "x", "--times", "often"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(wrong)
        assert stop.value.code == 2
    with pytest.raises(SystemExit):
        cli.main(["greet", "--help"])
    assert "How often. Default: 1." in " ".join(capsys.readouterr().out.split())
