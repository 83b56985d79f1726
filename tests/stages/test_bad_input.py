"""Bad input, end to end: one clear message with the remedy, code 2, and no artifact that looks whole."""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from mengya import manifest
from mengya.cli import _machine_fault
from mengya.metrics import read_jsonl

from ..conftest import in_each_step, interrupt_after, write_jsonl


def check(result, *words: str, out: Path | None = None, stage: str | None = None) -> None:
    """The command was refused with a message that has all `words`; below `out` nothing but whole artifacts looks
    like one, and `stage` is not among them."""
    assert result.code == 2, (result.code, result.err)
    own = [line for line in result.err.splitlines() if not line.startswith("[transformers]")]
    assert own[0].startswith("mengya: ") and "Traceback" not in result.err and "Warning" not in result.err
    for word in words:
        assert word in result.err, result.err
    for directory in out.iterdir() if out and out.is_dir() else ():
        if directory.name == stage:
            pytest.fail(f"{directory} looks whole")
        if directory.is_dir() and directory.suffix != ".partial":
            assert manifest.read(directory), directory


@pytest.fixture
def refused(project, mengya):
    """refused(*overrides, words=[...], stage=..., recipe=...): `mengya run` into run/, which must be refused."""

    def refused(*overrides, words, stage=None, recipe="tiny.toml", setup=""):
        result = mengya("run", recipe, *overrides, "--out", "run", setup=setup)
        check(result, *words, out=project / "run", stage=stage)
        return result

    return refused


# --- recipe and command line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("nowhere.toml", ["there is no recipe 'nowhere.toml'; give the path of a .toml file"]),
        (".", ["is a folder; give the path of a .toml file"]),
        ("bytes.toml", ["bytes.toml is not UTF-8 text", "save it as UTF-8"]),
        ("broken.toml", ["broken.toml is not valid TOML", "line 1"]),
        ("text.jsonl", ["is not valid TOML"]),
    ],
)
def test_recipes_that_cannot_be_read(project, refused, recipe, words):
    (project / "bytes.toml").write_bytes("[corpus]\ntitle = '萌芽'".encode("gb18030"))
    (project / "broken.toml").write_text("[corpus\n")
    refused(recipe=recipe, words=words)
    assert not (project / "run").exists()


def test_all_faults_of_a_recipe_are_found_before_anything_is_written(project, refused):
    overrides = ["corpus.heldotu=1", "tokenizer.vocab_size=many", "pretrain.model.hidden_size=[1]", "corpus.path=gone"]
    words = ["mean 'corpus.heldout'?", "tokenizer.vocab_size: input should be a valid integer", "(it is 'many')"]
    result = refused(*overrides, words=[*words, "pretrain.model.hidden_size: input should be a valid integer"])
    assert len(result.err.splitlines()) == 4  # what is wrong with corpus comes before its path
    refused("corpus.path=gone.jsonl", words=["corpus.path: 'gone.jsonl' does not exist; correct the path"])
    assert not (project / "run").exists()


def test_out_and_until(project, mengya):
    check(mengya("run", "tiny.toml", "--out", "text.jsonl"), "text.jsonl is a file", "choose another --out")
    check(mengya("run", "tiny.toml", "--out", "text.jsonl/x"), "lies below one; choose another --out")
    check(mengya("run", "tiny.toml", "--until", "dpo"), "--until dpo: the recipe has no such stage")
    assert not (project / "runs").exists()


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b" \n\n\t\n", b'{"text": ""}\n' * 3])
def test_an_empty_corpus(project, refused, content):
    (project / "text.jsonl").write_bytes(content)
    refused(words=["the corpus is empty", "check corpus.path"], stage="corpus")


@pytest.mark.parametrize("name", ["text.jsonl", "text.txt", "text.csv", "text.parquet", "text.txt.gz", "text.zst"])
def test_binary_garbage(project, refused, name):
    (project / name).write_bytes(bytes(range(256)) * 400)
    words = ["no reader for this type of file"] if name == "text.zst" else ["the corpus is empty", "quarantine"]
    refused(f"corpus.path={name}", words=words, stage="corpus")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("corpus.min_chars=100000", ["the corpus is empty", "200 too short"]),
        ("corpus.text_field=nope", ["the corpus is empty", "no string in the text field 'nope'"]),
        ("corpus.heldout=nan", ["corpus.heldout: input should be a finite number (it is nan)"]),
        ("corpus.min_chars=0", ["corpus.min_chars: input should be greater than or equal to 1 (it is 0)"]),
        ("tokenizer.sample_bytes=-1", ["tokenizer.sample_bytes: input should be greater than or equal to 1"]),
        ("tokenizer.max_token_length=-1", ["tokenizer.max_token_length: input should be greater than or equal to 1"]),
    ],
)
def test_settings_that_leave_nothing(refused, override, words):
    refused(override, words=words, stage="corpus")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tokenizer.corpus=text.jsonl", ["'text.jsonl' is a file; give a directory that holds a corpus"]),
        ("tokenize.corpus=@tokenizer", ["'@tokenizer' makes a tokenizer, not a corpus; use @corpus"]),
        ("tokenize.tokenizer=@corpus", ["'@corpus' makes a corpus, not a tokenizer; use @tokenizer"]),
        ("pretrain.shards=@corpus", ["'@corpus' makes a corpus, not shards; use @tokenize"]),
        ("pretrain.shards=@tokenizer", ["'@tokenizer' makes a tokenizer, not shards; use @tokenize"]),
    ],
)
def test_the_output_of_another_stage_is_refused_before_anything_runs(project, mengya, override, words):
    result = mengya("run", "tiny.toml", override, "--out", "run")
    assert result.code == 2 and all(word in result.err for word in words), result.err
    assert not (project / "run").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tokenize.corpus=folder", ["corpus (it has no train.jsonl); use the output of the corpus stage"]),
        ("tokenize.tokenizer=folder", ["no tokenizer.json in"]),
        ("pretrain.shards=folder", ["no tokenizer.json in"]),
        ("pretrain.shards=run/tokenizer", ["has no token shards; give the output of the tokenize stage"]),
    ],
)
def test_a_folder_that_no_stage_wrote(grown, mengya, override, words):
    (grown / "folder").mkdir()
    if override.endswith("run/tokenizer"):  # of a version whose manifests did not say what a directory holds
        path = grown / "run" / "tokenizer" / "stage.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "makes"}))
    stage = override.split(".")[0]
    for name in ("tokenize", "pretrain")[("tokenize", "pretrain").index(stage) :]:
        shutil.rmtree(grown / "run" / name)
    result = mengya("run", "tiny.toml", override, "--out", "run")
    assert result.code == 2 and all(word in result.err for word in words), result.err


def test_a_folder_without_text(project, refused):
    (project / "folder").mkdir()
    refused("corpus.path=folder", words=["nothing to read in folder; supported are"], stage="corpus")
    (project / "folder" / "a.docx").touch()
    refused("corpus.path=folder", words=["nothing to read in folder; supported are"], stage="corpus")


def test_half_a_utf8_sequence_costs_its_own_row_only(project, mengya):
    lines = (project / "text.jsonl").read_bytes().splitlines(keepends=True)
    row = '{"text": "好好学习"}\n'.encode()
    lines[10] = row[:12] + row[13:]
    (project / "text.jsonl").write_bytes(b"".join(lines))
    result = mengya("run", "tiny.toml", "--until", "corpus", "--out", "run")
    assert result.code == 0
    (bad,) = [json.loads(line) for line in (project / "run" / "corpus" / "quarantine.jsonl").read_text().splitlines()]
    assert (bad["file"], bad["line"]) == ("text.jsonl", 11) and "not valid" in bad["reason"]
    counts = json.loads((project / "run" / "corpus" / "corpus.json").read_text())
    assert counts["train"] + counts["heldout"] + counts["duplicates"] == 199 and counts["quarantined"] == 1
    assert "1 quarantined" in result.out


@pytest.mark.parametrize("name", ["long.txt", "long.jsonl"])
def test_one_very_long_line(project, mengya, name):
    """20 MB, in bounded memory: plain text is cut into documents, a row is one document."""
    base = mengya("run", "tiny.toml", "--until", "corpus", "--out", "small").memory
    with open(project / name, "w", encoding="utf-8") as file:
        file.write('{"text": "' if name.endswith("jsonl") else "")
        for number in range(40_000):
            file.write(f"{number} " + "春眠不觉晓 spring " * 25)
        file.write('"}' if name.endswith("jsonl") else "")
    size = (project / name).stat().st_size
    argv = ["run", "tiny.toml", f'corpus.path=["text.jsonl", "{name}"]', "--until", "corpus", "--out", "run"]
    result = mengya(*argv)
    assert result.code == 0, result.err
    counts = json.loads((project / "run" / "corpus" / "corpus.json").read_text())
    assert counts["quarantined"] == 0 and counts["train_bytes"] + counts["heldout_bytes"] > 0.95 * size
    assert result.memory - base < (20 * size if name.endswith("jsonl") else 3 * size), (result.memory - base) / size


@pytest.mark.parametrize(("heldout", "train"), [("1e-9", 199), ("0.9999999", 1)])
def test_one_document_at_least_is_in_each_split(project, mengya, heldout, train):
    assert mengya("run", "tiny.toml", f"corpus.heldout={heldout}", "--until", "corpus", "--out", "run").code == 0
    counts = json.loads((project / "run/corpus/corpus.json").read_text())
    assert (counts["train"], counts["heldout"]) == (train, 200 - train)
    lines = [(project / f"run/corpus/{split}.jsonl").read_text().splitlines() for split in ("train", "heldout")]
    assert [len(rows) for rows in lines] == [train, 200 - train] and not set(lines[0]) & set(lines[1])


@pytest.mark.parametrize("name", ["book.txt", "book.md"])
def test_a_single_document_is_a_corpus(project, mengya, name):
    """A book in one file: its tail is held out."""
    (project / name).write_text(
        "".join(f"从前有{i}座山，once upon a time {i * 7}。\n" for i in range(900)), encoding="utf-8"
    )
    overrides = (f"corpus.path={name}", "tokenizer.vocab_size=280")
    result = mengya("run", "tiny.toml", *overrides, "--until", "pretrain", "--out", "run")
    assert result.code == 0, result.err
    assert "its tail is held out" in result.out
    train, heldout = (
        (project / f"run/corpus/{split}.jsonl").read_text().splitlines() for split in ("train", "heldout")
    )
    assert len(train) == len(heldout) == 1
    both = json.loads(train[0])["text"] + "\n" + json.loads(heldout[0])["text"]
    assert both == (project / name).read_text(encoding="utf-8").strip()


def test_a_vocabulary_larger_than_the_text_allows_names_the_largest(project, refused, mengya):
    result = refused("tokenizer.vocab_size=60000", words=["more than this text allows", "tokenizer.vocab_size="])
    assert not (project / "run" / "tokenizer").exists()
    remedy = next(word for word in result.err.split() if word.startswith("tokenizer.vocab_size="))
    assert mengya("run", "tiny.toml", remedy, "--until", "tokenizer", "--out", "run").code == 0


def test_a_vocabulary_smaller_than_the_bytes(refused):
    refused("tokenizer.vocab_size=100", words=["vocab_size=100 is below the", "try 6400"], stage="tokenizer")


def test_a_model_with_fewer_entries_than_the_tokenizer(refused):
    words = ["vocab_size=299 is smaller than the tokenizer's 300; remove it or raise it"]
    refused("pretrain.model.vocab_size=299", words=words, stage="pretrain")


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_rows_without_end_reach_the_shards(project, mengya):
    """Letters, signs or spaces without a break: learning merges took a time with the square of their number."""
    long = ["".join(chr(0x4E00 + n * n % 3001) for n in range(200_000)), "A" * 2_000_000, "=" * 2_000_000]
    write_jsonl(project / "long.jsonl", [{"text": text} for text in [*long, f"a{' ' * 2_000_000}b"]])
    begin = time.monotonic()
    result = mengya("run", "tiny.toml", 'corpus.path=["text.jsonl", "long.jsonl"]', "--until", "tokenize")
    assert result.code == 0, result.err
    assert time.monotonic() - begin < 60


def test_a_row_longer_than_any_document_is_packed(project, mengya):
    overrides = ["pretrain.seq_len=1024", "pretrain.batch_tokens=1024", "pretrain.steps=1"]
    result = mengya("run", "tiny.toml", *overrides, "pretrain.model.max_position_embeddings=1024", "--out", "run")
    assert result.code == 0, result.err


def test_a_row_longer_than_the_context(refused):
    words = ["seq_len=256 is longer than the model's context of 128; lower it"]
    refused("pretrain.seq_len=256", "pretrain.batch_tokens=256", words=words, stage="pretrain")


def test_a_row_longer_than_the_whole_corpus(project, mengya):
    overrides = ["pretrain.seq_len=8192", "pretrain.batch_tokens=8192", "pretrain.steps=1", "pretrain.heldout_rows=1"]
    result = mengya("run", "tiny.toml", *overrides, "pretrain.model.max_position_embeddings=8192", "--out", "run")
    assert result.code == 0, result.err


# --- tuning and evaluation --------------------------------------------------------------------------------------------


@pytest.fixture
def refused_later(grown, mengya):
    """refused_later(stage, *overrides, words=[...]): like `refused`, with the stages before `stage` there already."""

    def refused(stage, *overrides, words):
        stages = ("sft", "dpo", "evaluate")
        for name in stages[stages.index(stage) :] if stage in stages else ():
            shutil.rmtree(grown / "run" / name)
        result = mengya("run", "whole.toml", *overrides, "--out", "run")
        check(result, *words, out=grown / "run", stage=stage)

    return refused


@pytest.mark.parametrize("content", ["", "{}\n", '{"prompt": "a?"}\n' * 4, '{"text": "no turns"}\n', "not json\n"])
def test_no_usable_conversation(grown, refused_later, content):
    (grown / "conversations.jsonl").write_text(content)
    refused_later("sft", words=["sft: no conversation was found; check the input (conversations.jsonl:"])


@pytest.mark.parametrize("heldout", ["1.0", "-0.1", "nan"])
def test_a_held_out_share_that_is_not_one(grown, refused_later, heldout):
    refused_later("sft", f"sft.heldout={heldout}", words=["sft.heldout: input should be"])


@pytest.mark.parametrize(("rows", "heldout", "why"), [(1, "0.02", "there is one question"), (9, "0", "heldout is 0")])
def test_without_held_out_conversations_the_last_weights_are_kept(grown, mengya, rows, heldout, why):
    for stage in ("sft", "dpo", "evaluate"):
        shutil.rmtree(grown / "run" / stage)
    talks = [{"instruction": f"{i}?", "output": f"{i}!"} for i in range(rows)]
    write_jsonl(grown / "conversations.jsonl", talks)
    result = mengya("run", "whole.toml", f"sft.heldout={heldout}", "--until", "sft", "--out", "run")
    assert result.code == 0, result.err
    assert f"{why}: nothing is measured, and the last weights are taken" in result.out
    assert not any("heldout" in key for row in read_jsonl(grown / "run/sft/metrics.jsonl") for key in row)


def test_ten_conversations_are_divided(grown, mengya):
    for stage in ("sft", "dpo", "evaluate"):
        shutil.rmtree(grown / "run" / stage)
    write_jsonl(grown / "conversations.jsonl", [{"instruction": f"{i}?", "output": f"{i}!"} for i in range(10)])
    result = mengya("run", "whole.toml", "sft.heldout=0.001", "--until", "sft", "--out", "run")
    assert result.code == 0, result.err
    assert "9 conversations to train on, 1 held out" in result.out
    assert any("heldout_loss" in row for row in read_jsonl(grown / "run/sft/metrics.jsonl"))


def test_pairs_that_are_too_long(grown, refused_later):
    row = {"prompt": "why?", "chosen": "山" * 500, "rejected": "水" * 500}
    (grown / "preferences.jsonl").write_text(json.dumps(row) + "\n")
    refused_later("dpo", words=["no preference pair fits into seq_len=128; raise dpo.seq_len"])


def test_no_pairs(grown, refused_later):
    (grown / "preferences.jsonl").write_text('{"prompt": "why?", "chosen": "a"}\n')
    words = [
        "dpo: no preference pair was found; check the input (preferences.jsonl:1: one answer of the pair is missing)"
    ]
    refused_later("dpo", words=words)


@pytest.mark.parametrize("content", ["", "\n\n", "not json\n", '{"kind": "riddle"}\n'])
def test_bad_questions(grown, refused_later, content):
    (grown / "questions.jsonl").write_text(content)
    refused_later("evaluate", words=["questions.jsonl"])


def test_all_bad_questions_are_told_before_a_model_is_loaded(grown, refused_later):
    row = {"kind": "fact", "id": "f", "prompt": "cat?", "answer": "mat"}
    write_jsonl(
        grown / "questions.jsonl", [row, {**row, "kind": "fcat"}, {**row, "prompt": ""}, {**row, "kind": "choice"}]
    )
    (grown / "model").mkdir()  # which is not even a model
    words = ["questions.jsonl:2: kind='fcat' is not a task; did you mean 'fact'?", "questions.jsonl:3: prompt=''"]
    words += ["questions.jsonl:4: choices=None must be a list"]
    refused_later("evaluate", "evaluate.models=model", words=words)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("@corpus", ["'@corpus' makes a corpus, not a model; use @pretrain or @sft"]),
        ("folder", ["folder", "config.json"]),
    ],
)
def test_evaluating_what_is_not_a_model(grown, refused_later, model, words):
    (grown / "folder").mkdir()
    refused_later("evaluate", f'evaluate.models=["@pretrain", "{model}"]', words=words)


def damage(name: str, directory: Path) -> None:
    weights = directory / "model.safetensors"
    config = directory / "config.json"
    if name == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif name == "empty":
        weights.write_bytes(b"")
    elif name == "no weights":
        weights.unlink()
    elif name == "no config":
        config.unlink()
    elif name == "config cut":
        config.write_text(config.read_text()[:50])
    elif name == "no tokenizer":
        (directory / "tokenizer.json").unlink()
    elif name == "tokenizer too large":
        content = json.loads((directory / "tokenizer.json").read_text())
        content["model"]["vocab"]["新词"] = len(content["model"]["vocab"])
        (directory / "tokenizer.json").write_text(json.dumps(content))
    elif name == "tokenizer cut":
        (directory / "tokenizer.json").write_text('{"version": ')
    else:
        values = json.loads(config.read_text())
        config.write_text(json.dumps(values | json.loads(name)))


DAMAGE = {
    "truncated": ["model.safetensors cannot be read", "copy the model again"],
    "empty": ["model.safetensors cannot be read", "copy the model again"],
    "no weights": ["lacks model.safetensors; copy the model again"],
    "no config": ["is not a model directory (it has no config.json)"],
    "config cut": ["config.json is not valid JSON", "copy the model again"],
    "no tokenizer": ["no tokenizer.json in"],
    "tokenizer too large": ["entries but the model only", "copy the tokenizer files that belong to this model"],
    "tokenizer cut": ["tokenizer.json is not a readable tokenizer", "train or copy it again"],
    '{"model_type": "mamba"}': ["missing", "use its own config"],
    '{"hidden_size": 48}': ["do not fit the model"],
    '{"num_hidden_layers": 2}': ["do not fit the model", "missing"],
    '{"num_hidden_layers": null}': ["config.json"],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model(grown, mengya, name):
    model = grown / "model"
    shutil.copytree(grown / "run" / "pretrain", model)
    (model / "stage.json").unlink()  # a model from somewhere else
    damage(name, model)
    for stage in ("sft", "dpo", "evaluate"):
        shutil.rmtree(grown / "run" / stage)
    check(mengya("run", "whole.toml", "sft.model=model", "--out", "run"), *DAMAGE[name], out=grown / "run", stage="sft")
    check(mengya("chat", "model", "--ask", "你好"), *DAMAGE[name])


def test_a_damaged_artifact_of_ours_is_noticed(grown, mengya):
    damage("truncated", grown / "run" / "pretrain")
    check(mengya("run", "whole.toml", "--out", "run"), "run/pretrain is damaged: model.safetensors", "run again")


def test_a_checkpoint_of_another_shape(grown, mengya):
    """Settings that a note beside it does not show cannot differ, so the checkpoint was put there by hand."""
    for layers, out in ((1, "one"), (2, "two")):
        argv = ["run", "tiny.toml", f"pretrain.model.num_hidden_layers={layers}", "--out", out]
        assert mengya(*argv, setup=interrupt_after(2)).code == 130
    checkpoints = [grown / out / "pretrain.partial" / "checkpoints" for out in ("one", "two")]
    shutil.rmtree(checkpoints[0])
    shutil.copytree(checkpoints[1], checkpoints[0])
    result = mengya("run", "tiny.toml", "--out", "one")
    check(result, "another shape", "delete", out=grown / "one", stage="pretrain")


def test_a_damaged_checkpoint_is_passed_over(project, mengya):
    assert mengya("run", "tiny.toml", "--out", "run", setup=interrupt_after(2)).code == 130
    (file,) = (project / "run" / "pretrain.partial" / "checkpoints").glob("step-3/*.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    result = mengya("run", "tiny.toml", "--out", "run")
    assert result.code == 0 and "passing over a damaged checkpoint" in result.out
    log = (project / "run" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5, 6]


# --- the machine ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="needs root, to become somebody else")
def test_no_permission_to_write(project, mengya):
    (project / "run").mkdir()
    project.chmod(0o755)
    nobody = "import os, encodings.utf_8_sig; os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    result = mengya("run", "tiny.toml", "--out", "run", setup=nobody)
    check(result, "no permission", "--out", "(run/", out=project / "run", stage="corpus")
    (project / "tiny.toml").chmod(0o600)
    check(mengya("run", "tiny.toml", setup=nobody), "no permission; change it", "(tiny.toml)")


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may write anywhere")
def test_no_permission_to_write_as_a_user(project, mengya):
    (project / "run").mkdir(mode=0o555)
    check(mengya("run", "tiny.toml", "--out", "run"), "no permission", "--out")


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("corpus", ["corpus.path=much.txt"]),
        ("pretrain", ["pretrain.model.hidden_size=256"]),  # its weights alone are 3 MB
        ("tokenizer", []),
        ("tokenize", []),
    ],
)
def test_a_full_disk(project, mengya, small_disk, stage, overrides):
    if stage == "corpus":
        (project / "much.txt").write_text("".join(f"{number} 山\n" for number in range(300_000)), encoding="utf-8")
    filler = small_disk / "filler"
    if not overrides:
        before = {"tokenizer": "corpus", "tokenize": "tokenizer"}[stage]
        assert mengya("run", "tiny.toml", "--until", before, "--out", "run").code == 0
        free = os.statvfs(small_disk)
        filler.write_bytes(bytes((free.f_bavail - 2) * free.f_bsize))
    result = mengya("run", "tiny.toml", *overrides, "--out", "run")
    filler.unlink(missing_ok=True)
    check(result, "free space" if "the disk is full" in result.err else "make room", out=small_disk, stage=stage)
    if not overrides:  # the remedy works
        assert mengya("run", "tiny.toml", "--until", stage, "--out", "run").code == 0


FULL = {
    "corpus": """
import mengya.stages.corpus as module
def full(*_): raise OSError(28, "No space left on device")
module.clean_document = full
""",
    "tokenizer": """
import mengya.text.tokenizer as module
def full(*_): raise Exception("No space left on device (os error 28)")
module.Tokenizer.save = full
""",
    "weights": """
import safetensors, mengya.model.language_model as module
text = "Error while serializing: I/O error: No space left on device (os error 28)"
def full(*_, **__): raise safetensors.SafetensorError(text)
module.save_file = full
""",
    "manifest": """
import mengya.durable as module
def full(*_): raise OSError(28, "No space left on device", "stage.json")
module.write_json = full
""",
}
"""How the libraries report a full disk, as Python that a command runs first."""


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_simulated(project, refused, name):
    stage = {"weights": "pretrain", "tokenizer": "tokenizer"}.get(name, "corpus")
    refused(words=["the disk is full; free space, then give the same command again"], stage=stage, setup=FULL[name])


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_a_full_disk_at_the_last_moment_of_training_costs_no_training(grown, mengya, stage):
    stages = ["pretrain", "sft", "dpo", "evaluate"]
    for name in stages[stages.index(stage) :]:
        shutil.rmtree(grown / "run" / name)
    argv = ["run", "whole.toml", f"{stage}.steps=6", f"{stage}.checkpoint_every=2", "--until", stage, "--out", "run"]
    check(mengya(*argv, setup=FULL["weights"]), "the disk is full", out=grown / "run", stage=stage)
    result = mengya(*argv)
    assert result.code == 0 and "going on after step" in result.out


BREAK = "import torch, torch._inductor.config as c; c.cpp.cxx = ('{path}/broken',); torch._dynamo.reset()"


def test_a_compiler_that_breaks_in_mid_run_costs_the_compiling_alone(project, mengya):
    """The same steps are taken as without one; the cache of another compilation must not help out."""
    broken = project / "broken"
    broken.write_text("#!/bin/sh\necho out of space >&2\nexit 1\n")
    broken.chmod(0o755)
    setup = f"import os; os.environ['TORCHINDUCTOR_CACHE_DIR'] = '{project}/cache'"
    setup += in_each_step(f"if self.seen == 2: {BREAK.format(path=project)}")
    argv = ["run", "tiny.toml", "--until", "pretrain"]
    result = mengya(*argv, "pretrain.compile=true", "--out", "broken-run", setup=setup)
    assert result.code == 0 and result.out.count("going on uncompiled, the compiler failed: ") == 1, result.err
    assert "Traceback" not in result.err
    assert mengya(*argv, "--out", "eager").code == 0
    found, wanted = (list(read_jsonl(project / out / "pretrain/metrics.jsonl")) for out in ("broken-run", "eager"))
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], rel=1e-5)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk quota is used up; free space"),
        (OSError(errno.EFBIG, "File too large"), "the shell's limit (ulimit -f) allows; choose another --out"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "芽" * 100), "longer than the disk allows"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a/b"), "correct the path (a/b)"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "another directory, e.g. with --out (/x/y)"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only; choose another --out"),
        (Exception("Permission denied (os error 13)"), "no permission"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    ],
)
def test_faults_of_the_machine_have_remedies(error, words):
    assert words in _machine_fault(error)


@pytest.mark.parametrize(
    "error", [KeyError("x"), OSError(errno.EBADF, "Bad file descriptor"), RuntimeError("error 28")]
)
def test_other_faults_are_ours(error):
    assert _machine_fault(error) is None


# --- what may change, and what is left alone --------------------------------------------------------------------------


def test_keys_that_decide_how_may_change_in_mid_run(project, mengya):
    assert mengya("run", "tiny.toml", "--out", "run", setup=interrupt_after(3)).code == 130
    smaller = [f"pretrain.{key}" for key in ("micro_batch=1", "compile=false", "keep_checkpoints=5")]
    result = mengya("run", "tiny.toml", *smaller, "pretrain.heldout_every=1", "--out", "run")
    assert result.code == 0 and "going on after step" in result.out, result.err
    steps = [row["step"] for row in read_jsonl(project / "run/pretrain/metrics.jsonl")]
    assert steps == list(range(1, 7))


def test_more_steps_for_a_finished_training_says_how(grown, refused_later):
    further = 'To train it further, make a new stage that starts from it (init or model = "@pretrain")'
    refused_later("none", "pretrain.steps=60", words=["steps was 6, is now 60", further])


def test_what_a_message_advises_can_be_done(grown, mengya):
    """Before the first checkpoint nothing is in the way of other settings and other data."""
    for stage in ("sft", "dpo", "evaluate"):
        shutil.rmtree(grown / "run" / stage)
    whole = (grown / "conversations.jsonl").read_text()
    (grown / "conversations.jsonl").write_text("{}\n")
    assert mengya("run", "whole.toml", "--out", "run").code == 2
    (grown / "conversations.jsonl").write_text(whole)
    result = mengya("run", "whole.toml", "sft.heldout=0.5", "sft.optim.lr=1e-5", "--until", "sft", "--out", "run")
    assert result.code == 0, result.err


@pytest.mark.parametrize("path", [".", "**/*.jsonl"])
def test_a_run_does_not_read_what_it_writes(project, mengya, path):
    overrides = (f"corpus.path={path}", "corpus.text_field=text", "--until", "tokenize", "--out", "run")
    assert mengya("run", "tiny.toml", *overrides).code == 0
    read = json.loads((project / "run/corpus/intake.json").read_text())
    result = mengya("run", "tiny.toml", *overrides)
    assert result.code == 0 and result.out.count("already there") == 3, result.err
    shutil.rmtree(project / "run/corpus")
    assert mengya("run", "tiny.toml", *overrides).code == 0
    assert json.loads((project / "run/corpus/intake.json").read_text()) == read
    assert all("run/" not in name for name in read)
    # An artifact that is named itself is read.
    copy = (f"corpus.path={project / 'run/corpus/train.jsonl'}", "--until", "corpus", "--out", "again")
    assert mengya("run", "tiny.toml", *copy).code == 0
