"""`mengya index` and `mengya ask`, as a user meets them."""

import shutil

import pytest

pytest.importorskip("rjieba", reason="searching needs pip install 'mengya[documents]'")
pytest.importorskip("opencc", reason="searching needs pip install 'mengya[documents]'")

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
