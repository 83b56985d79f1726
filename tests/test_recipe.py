"""Recipes: overrides, validation with all problems at once, and the wiring between stages."""

import json
import shutil

import pytest

from mengya.errors import UserError
from mengya.recipe import load_recipe, parse_recipe
from mengya.train.optimizer import ParameterGroup

from . import conftest

MODEL = conftest.MODEL.replace("= 128", "= 1024")


@pytest.fixture
def write(tmp_path, monkeypatch, everything):
    """write(text) -> path of a recipe, in the current directory, beside text.txt, talks.jsonl, pairs.jsonl and a
    directory here/ that is whatever is wanted."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(everything, tmp_path / "here")
    (tmp_path / "text.txt").write_text("text", encoding="utf-8")
    (tmp_path / "talks.jsonl").write_text('{"prompt": "a", "response": "b"}\n', encoding="utf-8")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "talks.jsonl").write_text('[["a", "b"]]\n', encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")

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
    recipe = load_recipe(write('[corpus]\npath = "text.txt"\n[tokenize]\ntokenizer = "here"\n'), [])
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
        # What a shell leaves of quoted strings.
        ("corpus.path=[text.txt,./text.txt]", "path", ["text.txt", "./text.txt"]),
        ("corpus.path=[ text.txt , talks.jsonl, ]", "path", ["text.txt", "talks.jsonl"]),
        ('corpus.path=["text.txt", talks.jsonl]', "path", ["text.txt", "talks.jsonl"]),
        ("corpus.text_field=12", "text_field", "12"),
        ("corpus.text_field=007", "text_field", "007"),
        ("corpus.text_field=1e5", "text_field", "1e5"),
        ("corpus.text_field=true", "text_field", "true"),
        ("corpus.text_field=2026-01-01", "text_field", "2026-01-01"),
        ('corpus.text_field="a\\d"', "text_field", "a\\d"),  # a backslash that is not TOML
    ],
)
def test_override_values(write, override, key, value):
    path = write('[corpus]\npath = "text.txt"\n')
    assert getattr(configs(path, override)["corpus"], key) == value


TUNED = "[sft]\nmodel = 'here'\npath = 'talks.jsonl'\n"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ('sft.freeze=["*embed*"]', "freeze", ["*embed*"]),
        ("sft.freeze=[*embed*]", "freeze", ["*embed*"]),
        ("sft.freeze=['*embed*',*norm*]", "freeze", ["*embed*", "*norm*"]),
        ("sft.freeze=[]", "freeze", []),
        ("sft.dtype=float32", "dtype", "float32"),
        ("sft.optim.betas=[0.5, 0.6]", "betas", (0.5, 0.6)),
        (
            "sft.optim.groups=[{pattern=*embed*, lr=1e-4}, {pattern = *norm*}]",
            "groups",
            [ParameterGroup(pattern="*embed*", lr=1e-4), ParameterGroup(pattern="*norm*")],
        ),
    ],
)
def test_overrides_mean_the_same_with_and_without_the_quotes_that_a_shell_takes_away(write, override, key, value):
    config = configs(write(TUNED), override)["sft"]
    assert getattr(config, key, None) == value or getattr(config.optim, key) == value


def test_a_word_where_a_list_is_wanted(write):
    (line,) = problems(write(TUNED), "sft.freeze=*embed*")
    assert line == """sft.freeze: input should be a valid list (it is '*embed*'); write a list: ["*embed*"]"""


def test_the_last_override_wins(write):
    path = write('[corpus]\npath = "text.txt"\n')
    assert configs(path, "corpus.seed=1", "corpus.seed=2")["corpus"].seed == 2


def test_nested_overrides_create_tables_and_replace_single_keys(write):
    path = write(f"[pretrain]\nshards = 'here'\noptim.lr = 1.0\noptim.eps = 2.0\n{MODEL}")
    config = configs(path, "pretrain.optim.lr=1e-5", "pretrain.model.hidden_size=64")["pretrain"]
    assert (config.optim.lr, config.optim.eps) == (1e-5, 2.0)
    assert (config.model.hidden_size, config.model.num_hidden_layers) == (64, 1)
    config = configs(write(f"[pretrain]\nshards = 'here'\n{MODEL}"), "pretrain.optim.lr=2")["pretrain"]
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
    assert "corpus.heldotu: there is no such key; did you mean 'corpus.heldout'?" in lines
    assert any(line.startswith("tokenizer.vocab_size: input should be a valid integer") for line in lines)
    assert any(line.endswith("(it is 'many')") for line in lines)
    assert "[tokenise]: there is no such stage; did you mean [tokenize]?" in lines
    assert "pretrain.optim.lrr: there is no such key; did you mean 'pretrain.optim.lr'?" in lines
    assert "pretrain.model.hidden_sise: there is no such key; did you mean 'pretrain.model.hidden_size'?" in lines
    assert "pretrain.model.hidden_size: must be set; see `mengya help pretrain`" in lines
    assert "sft.path: 'nowhere.jsonl' does not exist; correct the path" in lines
    assert any(
        line.startswith("sft.model: '@dpo' is not a stage above it; there: @corpus, @tokenizer") for line in lines
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[corpus]\nzzz = 1", ["corpus.zzz: there is no such key; see `mengya help corpus`"]),
        ("[zzz]", ["[zzz]: there is no such stage; there are corpus, tokenizer,"]),
        ("corpus = 3", ["corpus: must be a table; write [corpus]"]),
        ("steps = 3", ["steps: stands in no table; put it below the stage that it belongs to, e.g. [pretrain]"]),
        ("", ["it has no stage; see recipes/quickstart.toml"]),
        ("[corpus]", ["corpus: there is no text: set path to your files, or schoolbook = true"]),
        ("[corpus]\nschoolbook=true\nheldout=1.5", ["corpus: heldout=1.5 must be between 0 and 1, e.g. 0.01"]),
        ("[corpus]\npath=3", ["corpus.path: input should be a valid string (it is 3); put it in quotes"]),
        ('[corpus]\npath=["text.txt", 3]', ["corpus.path.1: input should be a valid string (it is 3); put it in quo"]),
        ('[corpus]\npath="text.txt"\ntext_field=2', ["corpus.text_field: input should be a valid string (it is 2)"]),
        (
            "[sft]\nmodel='here'\npath='talks.jsonl'\nseq_len=0",
            ["sft.seq_len: input should be greater than or equal to 1 (it is 0)"],
        ),
        ("[sft]\nmodel='here'\npath='talks.jsonl'\noptim=3", ["sft.optim: "]),
        (
            "[sft]\nmodel='here'\npath='talks.jsonl'\noptim.schedule='linear'",
            ["sft.optim.schedule: input should be 'cosine' or 'wsd' (it is 'linear')"],
        ),
        (
            "[sft]\nmodel='here'\npath='talks.jsonl'\noptim.betas=['a', 'b']",
            ["sft.optim.betas.0: input should be a valid number", "sft.optim.betas.1: input should be a valid number"],
        ),
        ("[sft]\nmodel='here'", ["sft.path: must be set; see `mengya help sft`"]),
    ],
)
def test_messages(write, text, expected):
    lines = problems(write(text))
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


def test_nested_problems_keep_their_path(write):
    rope = "[pretrain.model.rope_scaling]\nrope_type = 'yarn'\nfactr = 2"
    lines = problems(write(f"[pretrain]\nshards = 'here'\n{MODEL}{rope}"))
    table = "pretrain.model.rope_scaling"
    assert f"{table}.factr: there is no such key; did you mean '{table}.factor'?" in lines
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
    assert recipe.stages[0].stage is recipe.stages[1].stage and recipe.stages[1].config.min_chars == 3
    assert configs(write('[corpus]\nstage = "corpus"\npath = "text.txt"'))["corpus"].path == "text.txt"


def test_the_files_of_a_stage_of_another_name_are_checked(write):
    text = f'{TWICE}[evaluate]\nmodels = "here"\nquestions = "@corpus_zh/questions.jsonl"'
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
        ("['a/b']\nstage='corpus'", "[a/b]: is not a name; use letters, digits, _ and -, e.g. [corpus_2]"),
        ("['.']\nstage='corpus'", "[.]: is not a name; "),
        ("['a.b']\nstage='corpus'", "[a.b]: is not a name; "),
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
    [
        (b"[corpus", "is not valid TOML"),
        (b"[corpus]\npath = '\xff'", "is not UTF-8 text"),
        (b"[corpus]\nseed = 1\nseed = 2", "; a key stands twice in its table: keep one of them"),
        ("[corpus]\nseed：1".encode(), "at line 2, column 5.*; '：' is Chinese punctuation: write it with the keys"),
        ("[corpus]\npath = “a.txt”".encode(), "; '“' is Chinese punctuation"),
        ("[corpus]\nseed = # 种子：一".encode(), r"at line 2, column 8\)$"),
        (None, "there is no recipe"),
    ],
)
def test_a_recipe_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_recipe(path, [])


def test_a_link_to_itself_is_no_recipe(tmp_path):
    (tmp_path / "r.toml").symlink_to(tmp_path / "r.toml")
    with pytest.raises(UserError, match="there is no recipe"):
        load_recipe(tmp_path / "r.toml", [])


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; give the path of a \.toml file"):
        load_recipe(tmp_path, [])


# --- a base -----------------------------------------------------------------------------------------------------------


def test_a_recipe_is_laid_over_its_base_key_by_key(write, tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "lowest.toml").write_text("[corpus]\nschoolbook = true\nseed = 1\nheldout = 0.5\n")
    text = "base = 'lowest.toml'\n[corpus]\nseed = 2\n[pretrain]\nshards = 'here'\noptim.lr = 1.0\noptim.eps = 2.0\n"
    (tmp_path / "below" / "base.toml").write_text(text + MODEL)
    text = """base = "below/base.toml"
[tokenizer]
[pretrain]
optim.lr = 3.0
model.hidden_size = 64
"""
    found = configs(write(text), "corpus.min_chars=7", "pretrain.optim.eps=4")
    assert list(found) == ["corpus", "pretrain", "tokenizer"]  # those of the base first
    corpus, pretrain = found["corpus"], found["pretrain"]
    assert (corpus.schoolbook, corpus.seed, corpus.heldout, corpus.min_chars) == (True, 2, 0.5, 7)
    assert (pretrain.optim.lr, pretrain.optim.eps) == (3.0, 4.0)
    assert (pretrain.model.hidden_size, pretrain.model.num_hidden_layers) == (64, 1)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("base = 'nowhere.toml'", "there is no recipe .*nowhere.toml'; correct `base`, which is relative to the"),
        ("base = 'here'", "is a folder; correct `base`"),
        ("base = ''", "base='' must be the path of a recipe"),
        ("base = 3", "base=3 must be the path of a recipe"),
        ("[base]\nx = 1", "base={'x': 1} must be the path of a recipe"),
        ("base = 'r.toml'", r"its base leads back to itself \(r.toml -> r.toml\); remove one"),
        ("base = './here/../r.toml'", r"its base leads back to itself \(r.toml -> r.toml\); remove one"),
        ("base = 'other.toml'", r"its base leads back to itself \(r.toml -> other.toml -> r.toml\)"),
        ("base = 'bad.toml'", "bad.toml is not valid TOML"),
    ],
)
def test_a_base_that_cannot_be_followed(write, tmp_path, base, message):
    (tmp_path / "other.toml").write_text("base = 'r.toml'\n")
    (tmp_path / "bad.toml").write_text("[corpus")
    with pytest.raises(UserError, match=message):
        load_recipe(write(f"{base}\n[corpus]\nschoolbook = true\n"), [])


def test_two_tables_of_one_name(write):
    with pytest.raises(
        UserError, match=r"not valid TOML: .*; a stage that comes twice needs another name, e\.g\. \[sft_2"
    ):
        load_recipe(write("[corpus]\nschoolbook = true\n[corpus]\nseed = 1\n"), [])
    (line,) = problems(write("[corpus]\nschoolbook = true\n[Corpus]\nstage = 'corpus'\nschoolbook = true\n"))
    assert line == "[Corpus]: [corpus] has this name already on disks that ignore case; choose another name"


# --- what a reference makes -------------------------------------------------------------------------------------------

WHOLE = (
    """
[corpus]
schoolbook = true
[tokenizer]
[tokenize]
[pretrain]
"""
    + MODEL
)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            "[sft]\npath = 'talks.jsonl'\nmodel = '@tokenize'",
            "sft.model: '@tokenize' makes shards, not a model; use @",
        ),
        (
            "[evaluate]\nmodels = ['@pretrain', '@corpus']",
            "evaluate.models: '@corpus' makes a corpus, not a model; use @pretrain",
        ),
        (
            "[evaluate]\nmodels = '@pretrain'\ncorpus = '@tokenizer'",
            "evaluate.corpus: '@tokenizer' makes a tokenizer,",
        ),
        (
            "[two]\nstage = 'pretrain'\ninit = '@pretrain'\nshards = '@tokenizer'",
            "two.shards: '@tokenizer' makes a token",
        ),
        (
            "[sft]\npath = 'talks.jsonl'\nmodel = 'text.txt'",
            "sft.model: 'text.txt' is a file; give a directory that ",
        ),
        (
            "[sft]\npath = 'talks.jsonl'\nmodel = 'made'",
            "sft.model: 'made' holds shards, not a model; give",
        ),
    ],
)
def test_a_reference_must_make_what_the_stage_reads(write, tmp_path, stage, message):
    record = {"stage": "tokenize", "fingerprint": "0", "inputs": [], "makes": ["shards", "tokenizer"]}
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "stage.json").write_text(json.dumps(record))
    (line,) = problems(write(f"{WHOLE}{stage}\n"))
    assert line.startswith(message)


def test_what_holds_several_things_can_be_used_as_each(write):
    text = f"{WHOLE}[tokenize_2]\nstage = 'tokenize'\ntokenizer = '@pretrain'\n[tokenizer_2]\nstage = 'tokenizer'\n"
    assert load_recipe(write(text + "extend = '@tokenize'\nvocab_size = 6401\n"), []).stages


def test_no_stage_above_makes_what_is_needed(write):
    (line,) = problems(write("[corpus]\nschoolbook = true\n[sft]\npath = 'talks.jsonl'\nmodel = '@corpus'\n"))
    assert line.endswith("makes a corpus, not a model; no stage above it makes a model: add one, or give a path")


def test_a_key_of_a_nested_table_is_pointed_to(write):
    (line,) = problems(write(f"[pretrain]\nshards = 'here'\nlr = 1.0\n{MODEL}"))
    assert line == "pretrain.lr: there is no such key; did you mean 'pretrain.optim.lr'?"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "optim.lr"),
        ("learning_rat", None),
        ("max_grad_nrm", "optim.max_grad_norm"),
        ("optim.seq_len", "seq_len"),
        ("optim.sequence_loss_coef", "balance.sequence_loss_coef"),
        ("factor", "model.rope_scaling.factor"),
    ],
)
def test_the_whole_name_of_the_key_that_was_meant(write, key, meant):
    (line,) = problems(write(f"[pretrain]\nshards = 'here'\n{key} = 1.0\n{MODEL}"))
    assert line.endswith(f"did you mean 'pretrain.{meant}'?" if meant else "see `mengya help pretrain`")


# --- wiring -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ['"@corpus/conversations.jsonl"', '["@corpus/train.jsonl", "talks.jsonl", "./more"]', '"*s.jsonl"', '["more"]'],
)
def test_references_that_can_be_followed(write, value):
    path = write(f"[corpus]\nschoolbook = true\n[sft]\nmodel = 'here'\npath = {value}\n")
    (stage,) = load_recipe(path, []).stages[1:]
    assert stage.references["model"] == ["here"]
    assert stage.references["path"] == ([stage.config.path] if value[0] == '"' else stage.config.path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"@nothing"', "sft.path: '@nothing' is not a stage above it; there: @corpus"),
        ('"@dpo"', "sft.path: '@dpo' stands below; a stage reads from stages above it; there: @corpus"),
        ('"@sft"', "sft.path: '@sft' is not a stage above it; there: @corpus"),
        ('"@"', "sft.path: '@' is not a stage above it; there: @corpus"),
        (
            '["@corpus/conversations.jsonl", "@dpo/x"]',
            "sft.path: '@dpo/x' stands below; a stage reads from stages above it; there: @corpus",
        ),
        (
            '"@corpus"',
            "sft.path: '@corpus' is a whole directory; name a file in it; there: @corpus/train.jsonl, @corpus/heldout",
        ),
        ('"nowhere/"', "sft.path: 'nowhere/' does not exist; correct the path"),
        ('"nowhere*.jsonl"', "sft.path: 'nowhere*.jsonl' does not exist; correct the path"),
        ('["talks.jsonl", "nowhere"]', "sft.path: 'nowhere' does not exist; correct the path"),
        ('""', 'sft.path: names nothing; give a path or "@stage"'),
        ("[]", 'sft.path: names nothing; give a path or "@stage"'),
        ('["talks.jsonl", ""]', 'sft.path: names nothing; give a path or "@stage"'),
    ],
)
def test_references_that_lead_nowhere(write, value, message):
    path = write(f"[corpus]\nschoolbook=true\n[sft]\nmodel='here'\npath={value}\n[dpo]\npath='pairs.jsonl'\n")
    (line,) = problems(path)
    assert line.startswith(message)


def test_every_missing_path_is_found_before_anything_runs(write):
    path = write("[corpus]\npath = ['a.txt', 'text.txt', 'b.txt']\n[sft]\nmodel = 'm'\npath = 'c'\n")
    assert [line.split(":")[0] for line in problems(path)] == ["corpus.path"] * 2 + ["sft.model", "sft.path"]
    assert configs(path, check_paths=False)["sft"].model == "m"


def test_wiring_is_checked_even_where_paths_are_not(write):
    with pytest.raises(UserError, match="'@pretrain' is not a stage above it; there: none"):
        load_recipe(write("[sft]\npath = 'nowhere'\n"), [], check_paths=False)


def test_the_home_folder_may_be_written_as_a_tilde(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configs(write('[corpus]\npath = "~/text.txt"\n'))["corpus"].path == "~/text.txt"


def test_the_schoolbooks_files_are_missed_before_anything_runs(write):
    """Without this the run would fail at its last stage, after all training."""
    table = '[corpus]\npath="text.txt"\nschoolbook={}\n[evaluate]\nmodels="here"\nquestions="@corpus/questions.jsonl"'
    (line,) = problems(write(table.format("false")))
    assert line.startswith("evaluate.questions: questions.jsonl comes with the schoolbook, and corpus.sch")
    assert load_recipe(write(table.format("true")), []).stages


def test_a_router_that_cannot_learn_is_refused():
    """The weight of the only chosen expert is 1, whatever the router says."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    shape |= {"intermediate_size": 64, "max_position_embeddings": 64, "num_experts": 4, "moe_intermediate_size": 16}
    for more, refused in (({}, True), ({"norm_topk_prob": False}, False), ({"num_experts_per_tok": 2}, False)):
        tables = {"seq_len": 64, "shards": "@tokenize", "model": shape | {"num_experts_per_tok": 1} | more}
        tables = {"corpus": {"schoolbook": True}, "tokenizer": {}, "tokenize": {}, "pretrain": tables}
        if refused:
            with pytest.raises(UserError, match=r"learns nothing from the text; set model.norm_topk_prob=false"):
                parse_recipe("x", tables, "x.toml", check_paths=False)
        else:
            parse_recipe("x", tables, "x.toml", check_paths=False)
