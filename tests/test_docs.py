"""The documents say what is true: commands parse, keys exist, links lead somewhere, both languages stay in step."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

from mengya import cli
from mengya.data.conversations import parse_conversation
from mengya.data.preferences import parse_preference
from mengya.model.native.transformer import CausalLM
from mengya.recipe import load_recipe, parse_recipe
from mengya.schema import fields_of
from mengya.stages import MODULES, load_stage
from mengya.tasks.questions import read_questions
from mengya.toml_tables import laid_over, read_tables

ROOT = Path(__file__).parent.parent
PAIRS = [("README.md", "README.zh.md"), ("docs/guide.md", "docs/guide.zh.md")]
USER_DOCS = [name for pair in PAIRS for name in pair]
STORIES = ("docs/architecture.md", "docs/architecture.zh.md", "docs/ablation.md", "docs/ablation.zh.md")
DOCS = [*USER_DOCS, *STORIES, "CONTRIBUTING.md", "CHANGELOG.md", "docs/LOG.md", "docs/LEADERBOARD.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_SUFFIXES = {"json", "jsonl", "py", "toml", "md"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fences(name: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(read(name)) if kind == language]


def commands(name: str) -> list[str]:
    return [line for body in fences(name, "bash") for line in body.splitlines() if line.strip()]


def inline_code(name: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", read(name)))


def own_commands(name: str) -> list[list[str]]:
    """The words after `mengya` of every command line, fenced or in the text."""
    lines = [*commands(name), *inline_code(name)]
    words = [shlex.split(line) for line in lines if re.match(r"(\.venv/bin/)?mengya ", line)]
    return [line[1:] for line in words]


def headings(name: str) -> list[str]:
    """The level of each heading."""
    return re.findall(r"^(#+) ", FENCE.sub("", read(name)), re.MULTILINE)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_the_same_sections_and_commands(english, chinese):
    assert headings(english) == headings(chinese)
    assert len(commands(english)) > 3 and commands(english) == commands(chinese)
    for language in ("python", "toml"):
        assert fences(english, language) == fences(chinese, language)
    assert len(re.findall(r"^\|", read(english), re.MULTILINE)) == len(re.findall(r"^\|", read(chinese), re.MULTILINE))


def test_the_stories_name_the_same_files_and_all_of_them_exist():
    named = [sorted({*re.findall(r"`([\w/]+(?:\.py|/))`", read(name))} - {"src/mengya/"}) for name in STORIES]
    assert named[0] == named[1] and len(named[0]) > 30
    assert [path for path in named[0] if not (ROOT / "src" / "mengya" / path).exists()] == []
    assert headings(STORIES[0]) == headings(STORIES[1])
    assert fences(STORIES[0], "mermaid") == fences(STORIES[1], "mermaid")
    in_pictures = re.findall(r"[\w/]+\.py", "".join(fences(STORIES[0], "mermaid")))
    assert in_pictures and all((ROOT / "src" / "mengya" / path).exists() for path in in_pictures)


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_is_short(name):
    assert len(read(name).splitlines()) <= 150


@pytest.mark.parametrize("name", DOCS)
def test_links_and_files_exist(name):
    here = (ROOT / name).parent
    links = [link for link in re.findall(r"\]\(([^)]+)\)", read(name)) if not link.startswith("https://")]
    missing = [link for link in links if not (here / link).exists()]
    mentioned = re.findall(r"\b(?:bench|recipes|docs|tests|src)/[\w./-]*\w", read(name))
    missing += [path for path in mentioned if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("name", DOCS)
def test_make_targets_exist(name):
    makefile = read("Makefile")
    lines = [*commands(name), *inline_code(name)]
    targets = {match[1] for line in lines if (match := re.match(r"make (\w+)", line))}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), targets


def test_the_commands_of_the_makefile_parse():
    lines = [shlex.split(line) for line in read("Makefile").splitlines() if line.startswith("\t$(BIN)/mengya ")]
    parsed = [cli._parse(words[1:])[1] for words in lines]
    assert [words[1] for words in lines] == ["run", "chat"]
    assert len(parsed[1].ask) == 3 and str(parsed[1].model).startswith(str(parsed[0].out))


@pytest.mark.parametrize("name", DOCS)
def test_commands_parse_and_their_overrides_validate(name, monkeypatch):
    for words in own_commands(name):
        if len(words) == 1 and words[0] != "help":  # a bare mention, such as `mengya run`
            with pytest.raises(SystemExit) as stop:
                cli.main([words[0], "--help"])
            assert stop.value.code == 0, words
            continue
        _, parsed = cli._parse(words)
        if words[0] in ("run", "plan"):
            recipe = load_recipe(ROOT / parsed.recipe, parsed.overrides, check_paths=False)
            assert getattr(parsed, "until", None) in (None, *(stage.name for stage in recipe.stages))
        if words[0] == "help" and parsed.stage and parsed.stage != "STAGE":
            assert parsed.stage in MODULES


def has_key(stage: str, path: list[str]) -> bool:
    owner = load_stage(stage).config
    for part in path:
        if owner is None or part not in fields_of(owner):
            return False
        kinds = (fields_of(owner)[part].annotation, *getattr(fields_of(owner)[part].annotation, "__args__", ()))
        owner = next((kind for kind in kinds if hasattr(kind, "__pydantic_fields__")), None)
    return True


@pytest.mark.parametrize("name", DOCS)
def test_keys_in_the_text_exist(name):
    pattern = re.compile(rf"^({'|'.join(MODULES)})\.([a-z_]+(?:\.[a-z_]+)*)(?:\s*=.*)?$")
    keys = [(m[1], m[2].split(".")) for code in inline_code(name) if (m := pattern.match(code))]
    wrong = [key for key in keys if key[1][-1] not in FILE_SUFFIXES and not has_key(*key)]
    assert not wrong
    assert keys or name not in USER_DOCS


@pytest.mark.parametrize("name", USER_DOCS)
def test_recipes_in_the_text_are_valid(name):
    for body in fences(name, "toml"):
        tables = tomllib.loads(body)
        if base := tables.pop("base", None):
            tables = laid_over(read_tables(ROOT / base), tables)
        assert parse_recipe("example", tables, name, check_paths=False).stages


@pytest.mark.parametrize("name", ["docs/guide.md", "docs/guide.zh.md"])
def test_rows_in_the_guide_are_understood(name, tmp_path):
    conversations, pairs, questions = fences(name, "json")
    for line in conversations.splitlines():
        assert parse_conversation(json.loads(line))[-1]["role"] == "assistant", line
    for line in pairs.splitlines():
        assert parse_preference(json.loads(line)).prompt, line
    (tmp_path / "questions.jsonl").write_text(questions, encoding="utf-8")
    assert len(read_questions(tmp_path / "questions.jsonl")) == len(questions.splitlines())


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_table_of_published_sizes_is_right(name):
    rows = re.findall(
        r"^\| `(recipes/[^`]+)` \| ([\d /]+) \| ([\d,]+) \|.*\| ([\d,]+)[^|]*\|$", read(name), re.MULTILINE
    )
    made = [path for path in ROOT.glob("recipes/*/*.toml") if "[pretrain.model]" in path.read_text(encoding="utf-8")]
    assert {row[0] for row in rows} == {path.relative_to(ROOT).as_posix() for path in made}
    for recipe, shape, vocabulary, parameters in rows:
        stages = load_recipe(ROOT / recipe, [], check_paths=False).stages
        c = next(stage for stage in stages if stage.name == "pretrain").config.model
        assert shape == " / ".join(
            map(str, (c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads))
        )
        with torch.device("meta"):
            count = CausalLM(c).all_parameters()
        assert (vocabulary, parameters) == (f"{c.vocab_size:,}", f"{count:,}")


@pytest.mark.parametrize("name", ["docs/guide.md", "docs/guide.zh.md"])
def test_the_guide_lists_the_recipes_of_somebodys_model(name):
    begin_elsewhere = [
        path for path in ROOT.glob("recipes/*/*.toml") if "[pretrain.model]" not in path.read_text(encoding="utf-8")
    ]
    assert all(f"`{path.relative_to(ROOT).as_posix()}`" in read(name) for path in begin_elsewhere)


@pytest.mark.parametrize("name", DOCS)
def test_no_path_of_a_machine(name):
    assert not re.search(r"(?<![\w.…~])/(?:home|root|tmp|usr|work|mnt|opt|Users)\b", read(name))


def test_the_licence_is_whole():
    text = read("LICENSE")
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert text.rstrip().endswith("limitations under the License.")
