"""`mengya index` and `mengya ask`, as a user meets them."""

import os
import shutil

import pytest

pytest.importorskip("rjieba", reason="searching needs pip install 'mengya[documents]'")
pytest.importorskip("opencc", reason="searching needs pip install 'mengya[documents]'")

from mengya.commands.index import Config, run
from mengya.errors import UserError
from mengya.rag.answer import answer
from mengya.rag.store import KnowledgeFolder

from .speaker import Speaker


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "docs" / "b").mkdir(parents=True)
    (tmp_path / "docs" / "a.md").write_text("# 假期\n\n员工每年有10天年假。\n", encoding="utf-8")
    (tmp_path / "docs" / "b" / "a.md").write_text("# 差旅\n\n火车票可以报销。\n", encoding="utf-8")
    (tmp_path / "docs" / ".hidden").write_text("secret", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    return tmp_path


def test_files_are_added_kept_replaced_listed_and_removed(texts, mengya):
    added = mengya("index", "--kb", "制度", "docs")
    assert (added.code, added.err) == (0, "")
    assert [line for line in added.out.splitlines() if line[0] in "+~=!-"] == [
        "+ docs/a.md  1 passages", "+ docs/b/a.md  1 passages"
    ]  # fmt: skip
    (texts / "docs" / "a.md").write_text("# 假期\n\n员工每年有15天年假。\n", encoding="utf-8")
    again = mengya("index", "--kb", "制度", "docs")
    assert "~ docs/a.md  1 passages" in again.out and "= docs/b/a.md" in again.out
    base = KnowledgeFolder(texts / "knowledge").open("制度")
    assert base.counts() == {"files": 2, "passages": 2, "search": 2, "vectors": 0}
    removed = mengya("index", "--kb", "制度", "--remove", "docs/b/a.md", "--list")
    assert removed.code == 0 and removed.out.splitlines() == ["- docs/b/a.md", "docs/a.md  1 passages"]
    assert mengya("index").out == "制度\n"
    found = answer(Speaker(lambda _: "15天年假[1]"), [base], "年假有几天？")
    assert [(c.file, c.headings) for c in found.citations] == [("docs/a.md", ("假期",))]


def test_a_file_that_is_renamed_is_told(texts, mengya):
    """Otherwise the old one answers for ever."""
    mengya("index", "--kb", "制度", "docs")
    (texts / "docs" / "a.md").rename(texts / "docs" / "假期.md")
    again = mengya("index", "--kb", "制度", "docs").out.splitlines()
    assert "+ docs/假期.md  1 passages" in again
    assert again[-1] == "? docs/a.md  is not in its folder any more; --remove docs/a.md forgets it"


def test_no_file_takes_the_place_of_another(texts, mengya):
    """Long paths that differ at their end, and names in an older encoding, had the same name in the base."""
    deep = texts.joinpath("docs", *["很长的目录名字" * 5] * 6)
    deep.mkdir(parents=True)
    (deep / "甲.txt").write_text("春天来了。", encoding="utf-8")
    (deep / "乙.txt").write_text("秋天来了。", encoding="utf-8")
    for name in ("报告", "合同"):
        (texts / "docs" / os.fsdecode(f"{name}.txt".encode("gbk"))).write_text(f"{name}的内容。", encoding="utf-8")
    added = mengya("index", "--kb", "x", "docs")
    assert (added.code, added.out.count("+ "), added.out.count("~ "), added.out.count("? ")) == (0, 6, 0, 0)
    names = [file.name for file in KnowledgeFolder(texts / "knowledge").open("x").files()]
    assert {"docs/报告.txt", "docs/合同.txt"} < set(names) and max(map(len, names)) == 200


def test_a_folder_with_what_programs_leave_there(texts, mengya):
    """stylebi PR#5264, opengever.core PR#1702; and the bases may lie in the folder that is indexed."""
    (texts / "empty.txt").unlink()
    for name in ("~$a.docx", "Thumbs.db", "desktop.ini"):
        (texts / "docs" / name).write_bytes(b"x" * 162)
    (texts / "docs" / "elsewhere").symlink_to(texts)
    added = mengya("index", "--kb", "x", ".")
    told = [line for line in added.out.splitlines() if line[0] in "+~=!-?"]
    assert added.code == 0 and [line.split("  ")[0] for line in told] == [
        "? docs/elsewhere",
        "+ docs/a.md",
        "+ docs/b/a.md",
    ]
    (texts / "docs" / "a.md").rename(texts / "c.md")
    assert "? docs/a.md  is not in its folder any more" in mengya("index", "--kb", "x", ".").out


def test_files_are_read_anew_when_the_readers_have_changed(texts, monkeypatch, capsys):
    given = Config(files=[str(texts / "docs" / "a.md")], kb="x", folder=texts / "knowledge")
    for readers, sign in ((1, "+"), (1, "="), (2, "~"), (2, "=")):
        monkeypatch.setattr("mengya.rag.reading.worker.READERS", readers)
        run(given)
        assert capsys.readouterr().out.startswith(f"{sign} ")


def test_a_file_that_cannot_be_opened_is_no_reason_to_stop(texts, monkeypatch):
    """onprem#60."""

    def refused(path):
        if path.name == "empty.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return str(path)

    monkeypatch.setattr("mengya.rag.reading.worker.reading_of", refused)
    folder = texts / "knowledge"
    with pytest.raises(UserError, match="1 of the files were not added"):
        run(Config(files=[str(texts / "empty.txt"), str(texts / "docs" / "a.md")], kb="x", folder=folder))
    assert len(KnowledgeFolder(folder).open("x").files()) == 1


@pytest.mark.parametrize(("argv", "message"), [
    (["index", "docs"], "name the knowledge base: --kb NAME"), (["index", "--kb", "x",
    "none.txt"], "neither a file nor a folder"),
    (["index", "--kb", "x"], "no knowledge base 'x'"), (["index", "--kb", "x",
    "empty.txt"], "1 of the files were not added"),
    (["index", "--kb", "x", "docs", "--remove", "y"], "holds no file 'y'"), (["ask", "m",
    "q"], "name the knowledge base"),
    (["ask", "m", "q", "--kb", "x"], "no knowledge base 'x'"), (["index", "--kb", "x", "docs", "--embeddings",
    "docs"], "no modules.json"),
])  # fmt: skip
def test_wrong_usage_has_a_remedy(texts, mengya, argv, message):
    result = mengya(*argv)
    assert result.code == 2 and message in result.err and "Traceback" not in result.err


def test_the_reason_why_a_file_was_not_added(texts, mengya):
    result = mengya("index", "--kb", "x", "empty.txt", "docs/a.md")
    assert result.code == 2 and "! empty.txt: no text found" in result.out and "+ docs/a.md" in result.out


def test_a_question_on_the_command_line(grown, mengya):
    """The tiny model says nothing of use: what stands in the documents is quoted."""
    (grown / "a.txt").write_text("the leave is ten days. " * 3, encoding="utf-8")
    model = grown / "model"
    shutil.copytree(grown / "run" / "dpo", model)
    assert mengya("index", "--kb", "k", "a.txt").code == 0
    result = mengya("ask", "model", "leave?", "banana?", "--kb", "k", "--max-new-tokens", "4")
    if "context" in result.err:  # the prompt is longer than what this model reads
        assert result.code == 2 and "shorten the question" in result.err
    else:
        assert result.code == 0, result.err
        assert "[1] a.txt" in result.out and "The passages do not say." in result.out
