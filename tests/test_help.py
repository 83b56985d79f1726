"""`mengya help`: every key of every stage, as TOML that a recipe can use."""

import re
import tomllib

import pytest
from pydantic import TypeAdapter

from mengya.commands.help import stage_help, stages_help
from mengya.errors import UserError
from mengya.schema import fields_of
from mengya.stages import MODULES, load_stage

SAMPLES = {"int": "2", "float": "2.0", "str": '"@corpus"', "bool": "true"}


def config_class(name: str) -> type:
    return load_stage(name).config


def filled(text: str) -> str:
    """The help with a value for everything that must be set, and without what may stay unset."""
    text = re.sub(r"(?ms)^# [^\n]*\(optional\)\n\[[^\n]*rope_scaling\].*", "", text)
    text = re.sub(r"(?m)^\w+ = \.\.\.  # unset.*$", "", text)
    return re.sub(r"= \.\.\.  # required: (\w+).*", lambda found: f"= {SAMPLES[found[1]]}", text)


def test_the_overview_has_a_line_for_every_stage():
    lines = stages_help().splitlines()
    for name in MODULES:
        assert any(re.match(rf"  {name} +\S.*\.$", line) for line in lines)


@pytest.mark.parametrize("name", MODULES)
def test_help_is_a_valid_recipe_once_it_is_filled_in(name):
    text = filled(stage_help(name))
    assert "..." not in text
    tables = tomllib.loads(text)
    assert list(tables) == [name]
    if name == "corpus":
        tables[name]["schoolbook"] = True
    cls = config_class(name)
    lora = tables[name].pop("lora", None)  # it is there only if written
    if name == "pretrain":
        shape = tables[name].pop("model") | {"hidden_size": 16}
        assert TypeAdapter(cls).validate_python(tables[name] | {"model": shape}).model.hidden_size == 16
        tables[name]["init"] = "@corpus"
    config = TypeAdapter(cls).validate_python(tables[name])
    if lora is not None:
        assert TypeAdapter(cls).validate_python(tables[name] | {"lora": lora}).lora.r == 16
    if hasattr(config, "optim"):  # a table that may come several times, and is there only if written
        assert len(config.optim.groups) == 1 and tables[name]["optim"].pop("groups")
        config = TypeAdapter(cls).validate_python(tables[name])
    for key, field in fields_of(cls).items():
        if not field.is_required():
            assert getattr(config, key) == field.get_default(call_default_factory=True) or key in ("schoolbook", "init")


@pytest.mark.parametrize("name", MODULES)
def test_help_shows_every_key_with_its_kind(name):
    text = stage_help(name)
    for key in fields_of(config_class(name)):
        assert re.search(rf"(?m)^{key} = |^\[{name}\.{key}\]", text), key
    kind = r"(\w+(\[\w+\])?|'\w+')"
    for line in re.findall(r"(?m)^\w+ = \.\.\..*$", text):
        assert re.fullmatch(rf"\w+ = \.\.\.  # (required|unset): {kind}( \| {kind})*", line), line


def test_help_of_a_path_names_both_shapes():
    assert "path = ...  # required: str | list[str]" in stage_help("sft")
    assert "text_field = ...  # unset: str" in stage_help("corpus")


def test_choices_are_listed():
    assert "schedule = \"cosine\"  # 'cosine' | 'wsd'" in stage_help("pretrain")


def test_keys_that_stages_share_are_explained_everywhere():
    explanation = "# Tokens of one optimizer step, padding included.\nbatch_tokens = 4096"
    assert all(explanation in stage_help(name) for name in ("pretrain", "sft", "dpo"))


def test_explanations_of_several_lines_are_comments():
    for line in stage_help("pretrain").splitlines():
        assert not line or line.startswith("#") or re.match(r"\[|\w+ = ", line), line


def test_the_overview_tells_how_a_stage_comes_twice():
    assert '[pretrain_zh] with stage = "pretrain"' in stages_help()


def test_help_of_an_unknown_stage():
    with pytest.raises(UserError, match="there is no stage 'sfd'; there are corpus, tokenizer"):
        stage_help("sfd")
