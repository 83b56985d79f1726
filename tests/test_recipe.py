"""Recipes: overrides, validation with all problems at once, and the wiring between stages."""

import pytest

from mengya.errors import UserError
from mengya.recipe import load_recipe

from .conftest import MODEL


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(text) -> path of a recipe, in the current directory, beside a file called text.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("text", encoding="utf-8")

    def write(text: str):
        path = tmp_path / "r.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def configs(path, *overrides, **options) -> dict:
    return {stage.name: stage.config for stage in load_recipe(path, list(overrides), **options).stages}


def problems(path, *overrides) -> list[str]:
    """The lines of the error, without the first one, which names the recipe."""
    with pytest.raises(UserError) as caught:
        load_recipe(path, list(overrides))
    first, *lines = str(caught.value).split("\n")
    assert first == f"{path} is not valid:"
    return [line.strip() for line in lines]


def test_stages_keep_the_order_of_the_file_and_the_name_is_that_of_the_file(write):
    recipe = load_recipe(write('[corpus]\npath = "text.txt"\n[tokenize]\ntokenizer = "text.txt"\n'), [])
    assert recipe.name == "r"
    assert [stage.name for stage in recipe.stages] == ["corpus", "tokenize"]


def test_a_byte_order_mark_is_no_part_of_the_recipe(write):
    assert configs(write('\ufeff[corpus]\npath = "text.txt"\n'))["corpus"].path == "text.txt"


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("corpus.heldout=0.25", "heldout", 0.25),
        ("corpus.heldout = 0.25", "heldout", 0.25),
        ("corpus.schoolbook=true", "schoolbook", True),
        ("corpus.min_chars=12", "min_chars", 12),
        ("corpus.text_field=body", "text_field", "body"),  # no TOML value: a bare string
        ('corpus.text_field="12"', "text_field", "12"),
        ("corpus.text_field=a=b", "text_field", "a=b"),
        ("corpus.text_field=正文", "text_field", "正文"),
        ("corpus.path=./text.txt", "path", "./text.txt"),
        ('corpus.path=["text.txt", "./text.txt"]', "path", ["text.txt", "./text.txt"]),
        ("corpus.path=[t]ext.txt", "path", "[t]ext.txt"),  # a glob
    ],
)
def test_override_values(write, override, key, value):
    path = write('[corpus]\npath = "text.txt"\n')
    assert getattr(configs(path, override)["corpus"], key) == value


def test_the_last_override_wins(write):
    path = write('[corpus]\npath = "text.txt"\n')
    assert configs(path, "corpus.seed=1", "corpus.seed=2")["corpus"].seed == 2


def test_nested_overrides_create_tables_and_replace_single_keys(write):
    path = write(f"[pretrain]\nshards = 'text.txt'\noptim.lr = 1.0\noptim.eps = 2.0\n{MODEL}")
    config = configs(path, "pretrain.optim.lr=1e-5", "pretrain.model.hidden_size=64")["pretrain"]
    assert (config.optim.lr, config.optim.eps) == (1e-5, 2.0)
    assert (config.model.hidden_size, config.model.num_hidden_layers) == (64, 1)
    config = configs(write(f"[pretrain]\nshards = 'text.txt'\n{MODEL}"), "pretrain.optim.lr=2")["pretrain"]
    assert config.optim.lr == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpus.path", "stage.key=value"),
        ("path=1", "stage.key=value"),
        ("corpus.=1", "stage.key=value"),
        ("=1", "stage.key=value"),
        ("corpsu.path=1", "names the stage 'corpsu', but the recipe has only corpus"),
        ("corpus.path.x=1", "goes through 'path', which is a value, not a table"),
        ("corpus.path=[a,b]", """'corpus.path=["one", "two"]'"""),  # what a shell leaves of ["a","b"]
    ],
)
def test_bad_overrides_say_what_to_write(write, override, message):
    with pytest.raises(UserError) as caught:
        load_recipe(write('[corpus]\npath = "text.txt"\n'), [override])
    assert message in str(caught.value) and override in str(caught.value)


# --- validation -------------------------------------------------------------------------------------------------------


def test_all_problems_are_listed_at_once_each_with_its_path_and_remedy(write):
    path = write(
        """
        [corpus]
        path = "nowhere.txt"
        heldotu = 0.1
        [tokenizer]
        vocab_size = "many"
        [tokenise]
        [pretrain]
        shards = "@corpus"
        optim.lrr = 1.0
        model.hidden_sise = 32
        [sft]
        path = "nowhere.jsonl"
        model = "@dpo"
        """
    )
    lines = problems(path)
    assert "corpus.heldotu: there is no such key; did you mean 'heldout'?" in lines
    assert any(line.startswith("tokenizer.vocab_size: input should be a valid integer") for line in lines)
    assert any(line.endswith("(it is 'many')") for line in lines)
    assert "[tokenise]: there is no such stage; did you mean [tokenize]?" in lines
    assert "pretrain.optim.lrr: there is no such key; did you mean 'lr'?" in lines
    assert "pretrain.model.hidden_sise: there is no such key; did you mean 'hidden_size'?" in lines
    assert "pretrain.model.hidden_size: must be set; see `mengya help pretrain`" in lines
    assert "sft.path: 'nowhere.jsonl' does not exist; correct the path" in lines
    assert any(line.startswith("sft.model: '@dpo' is no stage above it; there: @corpus, @tokenizer") for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[corpus]\nzzz = 1", ["corpus.zzz: there is no such key; see `mengya help corpus`"]),
        ("[zzz]", ["[zzz]: there is no such stage; there are corpus, tokenizer,"]),
        ("corpus = 3", ["corpus: must be a table; write [corpus]"]),
        ("", ["it has no stage; see recipes/quickstart.toml"]),
        ("[corpus]", ["corpus: there is no text: set path to your files, or schoolbook = true"]),
        ("[corpus]\nschoolbook=true\nheldout=1.5", ["corpus: heldout=1.5 must be between 0 and 1, e.g. 0.01"]),
        ("[corpus]\npath=3", ["corpus.path: input should be a valid string (it is 3); put it in quotes"]),
        ('[corpus]\npath=["text.txt", 3]', ["corpus.path.1: input should be a valid string (it is 3); put it in quo"]),
        ('[corpus]\npath="text.txt"\ntext_field=2', ["corpus.text_field: input should be a valid string (it is 2)"]),
        (
            "[sft]\nmodel='text.txt'\npath='text.txt'\nseq_len=0",
            ["sft.seq_len: input should be greater than or equal to 1 (it is 0)"],
        ),
        ("[sft]\nmodel='text.txt'\npath='text.txt'\noptim=3", ["sft.optim: "]),
        (
            "[sft]\nmodel='text.txt'\npath='text.txt'\noptim.schedule='linear'",
            ["sft.optim.schedule: input should be 'cosine' or 'wsd' (it is 'linear')"],
        ),
        (
            "[sft]\nmodel='text.txt'\npath='text.txt'\noptim.betas=['a', 'b']",
            ["sft.optim.betas.0: input should be a valid number", "sft.optim.betas.1: input should be a valid number"],
        ),
        ("[sft]\nmodel='text.txt'", ["sft.path: must be set; see `mengya help sft`"]),
    ],
)
def test_messages(write, text, expected):
    lines = problems(write(text))
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


def test_nested_problems_keep_their_path(write):
    rope = "[pretrain.model.rope_scaling]\nrope_type = 'yarn'\nfactr = 2"
    lines = problems(write(f"[pretrain]\nshards = 'text.txt'\n{MODEL}{rope}"))
    assert "pretrain.model.rope_scaling.factr: there is no such key; did you mean 'factor'?" in lines
    assert "pretrain.model.rope_scaling.factor: must be set; see `mengya help pretrain`" in lines


# --- a stage twice ----------------------------------------------------------------------------------------------------

TWICE = """
[corpus]
schoolbook = true
[corpus_zh]
stage = "corpus"
path = "text.txt"
[tokenizer]
corpus = "@corpus_zh"
"""


def test_a_table_of_another_name_says_which_stage_it_is(write):
    recipe = load_recipe(write(TWICE), ["corpus_zh.min_chars=3"])
    assert [(s.name, s.kind) for s in recipe.stages] == [
        ("corpus", "corpus"),
        ("corpus_zh", "corpus"),
        ("tokenizer", "tokenizer"),
    ]
    assert recipe.stages[0].module is recipe.stages[1].module and recipe.stages[1].config.min_chars == 3
    assert configs(write('[corpus]\nstage = "corpus"\npath = "text.txt"'))["corpus"].path == "text.txt"


def test_the_files_of_a_stage_of_another_name_are_checked(write):
    text = f'{TWICE}[evaluate]\nmodels = "text.txt"\nquestions = "@corpus_zh/questions.jsonl"'
    (line,) = problems(write(text))
    assert line.startswith("evaluate.questions: questions.jsonl comes with the schoolbook")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[corpus_zh]", '[corpus_zh]: there is no such stage; say which one it is, e.g. stage = "corpus"'),
        ("[zh]\nstage='corpsu'", "zh.stage: there is no stage 'corpsu'; did you mean 'corpus'?"),
        ("[zh]\nstage=3", "zh.stage: there is no stage 3; there are corpus,"),
        ("[zh]\nstage=['corpus']", "zh.stage: there is no stage ['corpus']; "),
        ("[sft]\nstage='corpus'", "sft.stage: [sft] is a stage itself; give a table that runs 'corpus' a"),
        ("['a/b']\nstage='corpus'", "[a/b]: is no name; use letters, digits, _ and -, e.g. [corpus_2]"),
        ("['.']\nstage='corpus'", "[.]: is no name; "),
        ("['a.b']\nstage='corpus'", "[a.b]: is no name; "),
        ("[zh]\nstage='corpus'\nzzz=1", "zh.zzz: there is no such key; see `mengya help corpus`"),
        ("[zh]\nstage='corpus'", "zh: there is no text: set path"),
        ("[zh]\nstage='corpus'\npath='gone'", "zh.path: 'gone' does not exist"),
    ],
)
def test_messages_about_tables_of_another_name(write, text, message):
    (line,) = problems(write(text))
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[corpus", "is not valid TOML"), (b"[corpus]\npath = '\xff'", "is no UTF-8 text"), (None, "there is no recipe")],
)
def test_a_recipe_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_recipe(path, [])


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; give the path of a \.toml file"):
        load_recipe(tmp_path, [])


# --- wiring -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ['"@corpus"', '"@corpus/sub/file.jsonl"', '["@corpus/a", "text.txt", "./"]', '"*.txt"', '["@corpus"]']
)
def test_references_that_can_be_followed(write, value):
    path = write(f"[corpus]\nschoolbook = true\n[sft]\nmodel = 'text.txt'\npath = {value}\n")
    (stage,) = load_recipe(path, []).stages[1:]
    assert stage.references["model"] == ["text.txt"]
    assert stage.references["path"] == ([stage.config.path] if value[0] == '"' else stage.config.path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"@nothing"', "sft.path: '@nothing' is no stage above it; there: @corpus"),
        ('"@dpo"', "sft.path: '@dpo' is no stage above it; there: @corpus"),
        ('"@sft"', "sft.path: '@sft' is no stage above it; there: @corpus"),
        ('"@"', "sft.path: '@' is no stage above it; there: @corpus"),
        ('["@corpus", "@dpo/x"]', "sft.path: '@dpo/x' is no stage above it; there: @corpus"),
        ('"nowhere/"', "sft.path: 'nowhere/' does not exist; correct the path"),
        ('"nowhere*.jsonl"', "sft.path: 'nowhere*.jsonl' does not exist; correct the path"),
        ('["text.txt", "nowhere"]', "sft.path: 'nowhere' does not exist; correct the path"),
        ('""', 'sft.path: names nothing; give a path or "@stage"'),
        ("[]", 'sft.path: names nothing; give a path or "@stage"'),
        ('["text.txt", ""]', 'sft.path: names nothing; give a path or "@stage"'),
    ],
)
def test_references_that_lead_nowhere(write, value, message):
    path = write(f"[corpus]\nschoolbook=true\n[sft]\nmodel='text.txt'\npath={value}\n[dpo]\npath='text.txt'\n")
    assert problems(path) == [message]


def test_every_missing_path_is_found_before_anything_runs(write):
    path = write("[corpus]\npath = ['a.txt', 'text.txt', 'b.txt']\n[sft]\nmodel = 'm'\npath = 'c'\n")
    assert [line.split(":")[0] for line in problems(path)] == ["corpus.path"] * 2 + ["sft.model", "sft.path"]
    assert configs(path, check_paths=False)["sft"].model == "m"


def test_wiring_is_checked_even_where_paths_are_not(write):
    with pytest.raises(UserError, match="'@pretrain' is no stage above it; there: none"):
        load_recipe(write("[sft]\npath = 'nowhere'\n"), [], check_paths=False)


def test_the_home_folder_may_be_written_as_a_tilde(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configs(write('[corpus]\npath = "~/text.txt"\n'))["corpus"].path == "~/text.txt"


def test_the_schoolbooks_files_are_missed_before_anything_runs(tmp_path):
    """Without this the run would fail at its last stage, after all training."""
    recipe = tmp_path / "r.toml"
    (tmp_path / "text.txt").write_text("文字")
    path = tmp_path.as_posix()
    table = f'[corpus]\npath="{path}/text.txt"\nschoolbook={{}}\n[evaluate]\nmodels="@corpus"\nquestions="@corpus/{{}}"'
    recipe.write_text(table.format("false", "questions.jsonl"), encoding="utf-8")
    with pytest.raises(UserError, match=r"evaluate\.questions: questions\.jsonl comes with the schoolbook"):
        load_recipe(recipe, [])
    for schoolbook, name in (("true", "questions.jsonl"), ("false", "train.jsonl")):
        recipe.write_text(table.format(schoolbook, name), encoding="utf-8")
        assert load_recipe(recipe, []).stages
