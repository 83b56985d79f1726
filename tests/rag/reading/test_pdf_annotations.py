"""PDF files: what lies over their pages and is no part of their text."""

import sys

from .pdf_maker import Page, pdf, text


def texts(document) -> list[str]:
    return [block.text for block in document.blocks]


def link(box: str, address: str, more: str = "") -> str:
    return f"/Subtype /Link /Rect [{box}] {more} /A << /S /URI /URI ({address}) >>"


def test_where_links_lead_stands_behind_their_words(read):
    """ragflow#10843, R2R#2230."""
    page = Page(
        [(50, 700, 12, "报名请见这里和那里。"), (50, 600, 20, "标题"), (50, 500, 12, "example.org/c")],
        annotations=[
            link("98 698 122 712", "https://example.org/a"),
            link("134 698 158 712", "https://example.org/b"),
            link("50 600 90 620", "https://example.org/title"),
            link("50 498 210 514", "https://example.org/c"),
            link("300 300 400 320", "https://example.org/nothing"),
            "/Subtype /Link /Rect [62 698 74 712] /Dest [0 /Fit]",
        ],
    )
    assert texts(read(pdf([page]), "a.pdf")) == [
        "报名请见这里〔https://example.org/a〕和那里〔https://example.org/b〕。", "标题", "example.org/c",
    ]  # fmt: skip


def test_a_link_over_two_lines_is_told_once(read):
    quads = "/QuadPoints [290 712 350 712 290 698 350 698 50 694 110 694 50 680 110 680]"
    words = [(50, 700, 12, "春天来了小草从土里钻出来了花也开了鸟儿在树上唱歌"), (50, 682, 12, "跑来跑去。后面没有。")]
    for annotations in (
        [link("50 680 660 712", "https://example.org/", quads)],
        [link("290 698 350 712", "https://example.org/"), link("50 680 110 694", "https://example.org/")],
    ):
        assert texts(read(pdf([Page(words, annotations=annotations)]), "a.pdf")) == [
            "春天来了小草从土里钻出来了花也开了鸟儿在树上唱歌跑来跑去。〔https://example.org/〕后面没有。"
        ]


def test_what_is_filled_in_and_written_over_a_page_is_read(read, monkeypatch):
    """pdf_oxide#92, open-legal-products/mike PR#387, pdfannots#50."""
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    states = "/AS /Yes /AP << /N << /Yes 3 0 R /Off 3 0 R >> >>"
    page = Page(
        [(50, 640, 12, "姓名"), (50, 620, 12, "同意")],
        annotations=[
            f"/Subtype /Widget /FT /Tx /T (n) /V {text('张三')} /Rect [100 638 300 654]",
            f"/Subtype /Widget /FT /Btn /T (c) /V /Yes {states} /Rect [100 618 112 630]",
            f"/Subtype /Widget /FT /Tx /T (h) /F 2 /V {text('看不见')} /Rect [100 438 300 454]",
            f"/Subtype /FreeText /Contents {text('手写的话')} /Rect [300 500 400 530] /DA (/F0 12 Tf)",
            f"/Subtype /Text /Contents {text('这里要改')} /Rect [300 600 320 620]",
        ],
    )
    alone = Page(annotations=[f"/Subtype /FreeText /Contents {text('只有批注')} /Rect [300 500 400 530]"])
    document = read(pdf([page, alone]), "a.pdf")
    assert texts(document) == ["姓名 | 张三\n同意 | ☑", "手写的话", "〔注：这里要改〕", "只有批注"]
    assert [page.state for page in document.pages] == ["text", "text"] and not document.notes


def test_words_that_are_crossed_out_say_so(read):
    """pi-outpost PR#190."""
    quads = "/QuadPoints [98 712 158 712 98 698 158 698]"
    page = Page(
        [(50, 700, 12, "违约金为百分之五，改为三。")],
        annotations=[f"/Subtype /StrikeOut /Rect [98 698 158 712] {quads} /Contents {text('商定')}"],
    )
    assert texts(read(pdf([page]), "a.pdf")) == ["违约金为〔划去：百分之五，〕改为三。", "〔注：商定〕"]


def test_files_inside_of_a_file_are_told(read):
    files = "/Names << /EmbeddedFiles << /Names [(a.txt) << /Type /Filespec /F (a.txt) /EF << >> >>] >> >>"
    document = read(pdf([Page([(50, 700, 12, "见附件。")])], catalog=files), "a.pdf")
    assert document.notes == ("left out: files inside of it (1)",)
