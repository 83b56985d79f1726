"""Real documents that are not part of the project; test_pdf.py and the others cover the same code without them."""

import os
import sys
from pathlib import Path

import pytest

FOLDER = Path(os.path.abspath(__file__)).parents[3].parent / "shared" / "data" / "rag"
"""Beside the checkout."""


def real(name: str) -> Path:
    if not (FOLDER / name).exists():
        pytest.skip(f"{FOLDER / name} is not there: real documents are not part of the project")
    return FOLDER / name


@pytest.mark.parametrize(
    "name, kind, first, last",
    [
        ("出版物汉字使用管理规定.pdf", "pdf", (1, "第一条 为使报纸、期刊、图书"), (3, "第十五条 本规定自")),
        ("关于地名用字的若干规定.pdf", "pdf", (1, "国语字[1987]"), (3, "")),
        ("moss_api.pdf", "pdf", (1, "MOSS API接口文档"), (4, "")),
        ("poi_tl_付款通知书.docx", "docx", (None, "付款通知书"), (None, "{{subtotal}}")),
        ("孔乙己_gb18030.txt", "text", (None, "鲁镇的酒店的格局"), (None, "大约孔乙己的确死了")),
        ("medical_qa_corpus.txt", "text", (None, "肛门病变"), (None, "")),
        ("weknora_quickstart.md", "markdown", (None, "快速上手"), (None, "")),
        ("langchain_chatglm_issues.csv", "csv", (None, "title"), (None, "")),
    ],
)
def test_documents(read, name, kind, first, last):
    document = read(real(name), name)
    assert document.kind == kind
    for page, text in (first, last):
        assert any(text in block.text and block.page == page for block in document.blocks)


def test_a_long_word_file_with_numbers_and_tables(read):
    document = read(real("mineru_docx_01.docx"), "mineru_docx_01.docx")
    headings = [block.text for block in document.blocks if block.kind == "heading"]
    assert sum(block.kind == "table" for block in document.blocks) == 10  # two of them are charts
    assert any(text.startswith("1. 有序列表构成的章节标题") for text in headings)


def test_a_scan_without_ocr(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    document = read(real("汉语拼音方案_扫描件.pdf"), "汉语拼音方案_扫描件.pdf")
    assert document.pages[0].state == "unread" and document.blocks == ()
