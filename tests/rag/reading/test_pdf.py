"""PDF files: order of reading, pages, and pages without text."""

import sys

import pytest

from mengya.errors import UserError

from .pdf_maker import Page, pdf


def lines(start: float, *texts: str, x: float = 50, size: float = 12, step: float = 18) -> list:
    return [(x, start - step * i, size, text) for i, text in enumerate(texts)]


def texts(document, page=None) -> list[str]:
    return [block.text for block in document.blocks if page is None or block.page == page]


def test_radicals_become_characters(read):
    assert texts(read(pdf([Page(lines(700, "⾼⽴⽅⼀"))]), "a.pdf")) == ["高立方一"]


def test_lines_become_paragraphs_and_large_letters_headings(read):
    full = "春天来了小草从土里钻出来了花也开了鸟儿在树上唱歌" + "孩子们在草地上"
    page = Page([(50, 750, 20, "春天的故事"), *lines(700, full, "跑来跑去。", "第二段在这里。")])
    document = read(pdf([page]), "a.pdf")
    assert [(b.kind, b.text) for b in document.blocks] == [
        ("heading", "春天的故事"),
        ("text", full + "跑来跑去。"),
        ("text", "第二段在这里。"),
    ]


def test_english_words_are_joined_with_spaces(read):
    page = Page(lines(700, "The little sprout grows in the gar", "den every day and so do we alltog", "ether."))
    assert texts(read(pdf([page]), "a.pdf")) == [
        "The little sprout grows in the gar den every day and so do we alltog ether."
    ]


def test_what_is_drawn_first_is_not_read_first(read):
    page = Page([*lines(500, "后面的一段话写在下面。"), *lines(700, "前面的一段话写在上面。")])
    assert texts(read(pdf([page]), "a.pdf")) == ["前面的一段话写在上面。", "后面的一段话写在下面。"]


def test_two_columns_are_read_one_after_the_other(read):
    left = [f"左栏第{n}行文字写得满满的{n}" for n in "一二三四五六"]
    right = [f"右栏第{n}行文字写得满满的{n}" for n in "一二三四五六"]
    rows = [item for pair in zip(lines(700, *left), lines(700, *right, x=320), strict=True) for item in pair]
    whole = "".join(texts(read(pdf([Page(rows)]), "a.pdf")))
    assert whole == "".join(left + right)


def test_three_columns_and_one_that_ends_early(read):
    """Lines of columns that are taken for rows of a table."""

    def texts_of(name, count):
        return [f"{name}栏第{n}行的文字写到右边" for n in "一二三四五"[:count]]

    columns = [part for i, name in enumerate("左中右") for part in lines(700, *texts_of(name, 5), x=40 + 185 * i)]
    assert texts(read(pdf([Page(columns)]), "a.pdf")) == ["".join(texts_of(name, 5)) for name in "左中右"]
    page = Page([*lines(700, *texts_of("左", 5)), *lines(700, *texts_of("右", 3), x=310)])
    assert texts(read(pdf([page]), "a.pdf")) == ["".join(texts_of("左", 5)), "".join(texts_of("右", 3))]


def test_hyphens_at_the_ends_of_lines(read):
    """docling#4151, xberg#1543."""
    page = Page(lines(700, "The contract ends by termi-", "nation; the smell of n-", "tridecanal; the price-", "list."))
    (text,) = texts(read(pdf([page]), "a.pdf"))
    assert text == "The contract ends by termination; the smell of n-tridecanal; the pricelist."


@pytest.mark.parametrize(
    "mojibake", ["ÖÐ»ªÈËÃñ¹²ºÍ¹úºÏÍ¬·¨µÚÒ»ÌõÎªÁË±£»¤µ±ÊÂÈË", "!\"#$%&'()*+!\"#$%&'()*+!\"#$%&'()*+1A2B"]
)
def test_a_text_layer_that_no_language_has_is_none(read, monkeypatch, mojibake):
    """firecrawl#3784, docling#2963."""
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    assert read(pdf([Page(lines(700, mojibake))]), "a.pdf").pages[0].state == "unread"
    fine = "Zażółć gęślą jaźń; où est le château? (Ça ira: déjà vu!)"
    assert read(pdf([Page(lines(700, fine))]), "a.pdf").pages[0].state == "text"


def test_characters_that_a_font_does_not_tell_are_counted(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    page = Page(lines(700, "第一条这是可以读的文字在这里写着写满了", "\ue001\ue002\ue003\ue004\ue005\ue006"))
    (shown,) = read(pdf([page]), "a.pdf").pages
    assert (shown.state, shown.note) == (
        "text", "6 characters could not be read: their font does not say what they are"
    )  # fmt: skip
    assert not read(pdf([Page(lines(700, "\uf0b7 一项", "\uf0b7 又一项"))]), "a.pdf").pages[0].note


def test_vertical_text_goes_from_the_right_to_the_left(read):
    left = [(300, 700 - 14 * i, 12, character) for i, character in enumerate("处处闻啼鸟")]
    right = [(330, 700 - 14 * i, 12, character) for i, character in enumerate("春眠不觉晓")]
    document = read(pdf([Page([*left, *right])]), "a.pdf")
    assert "".join(texts(document)).replace("\n", "") == "春眠不觉晓处处闻啼鸟"
    assert document.pages[0].note == "vertical text, order uncertain"
    mixed = [glyph for pair in zip(left, right, strict=True) for glyph in pair]
    assert "".join(texts(read(pdf([Page(mixed)]), "a.pdf"))).startswith("春")


def test_horizontal_text_with_wide_lines_is_not_vertical(read):
    glyphs = [
        (50 + 13 * i, 700 - 20 * row, 12, c)
        for row, text in enumerate(("春眠不觉晓", "处处闻啼鸟"))
        for i, c in enumerate(text)
    ]
    document = read(pdf([Page(glyphs)]), "a.pdf")
    assert document.pages[0].note == "" and "".join(texts(document)).startswith("春眠不觉晓")


def test_a_table_is_kept_in_rows(read):
    cells = [["型号", "价格", "库存"], ["甲一", "十元", "三件"], ["乙二", "九元", "无"]]
    words = [(50 + 150 * j, 700 - 20 * i, 12, text) for i, row in enumerate(cells) for j, text in enumerate(row)]
    document = read(pdf([Page(words)]), "a.pdf")
    assert [b.rows for b in document.blocks] == [tuple(map(tuple, cells))]


def test_a_table_that_goes_on_over_a_page_has_its_header_there_too(read):
    """xberg#1290, gpt-rag-ingestion#22."""

    def table(start, *rows):
        return Page(
            [(50 + 150 * j, start - 20 * i, 12, text) for i, row in enumerate(rows) for j, text in enumerate(row)]
        )

    head = ("名称", "数量", "单价")
    for more in ([], [head]):
        pages = [
            table(700, head, ("甲", "1", "10"), ("乙", "2", "20")),
            table(750, *more, ("丙", "3", "30"), ("丁", "4", "9")),
        ]
        assert [block.rows for block in read(pdf(pages), "a.pdf").blocks] == [
            (head, ("甲", "1", "10"), ("乙", "2", "20")), (head, ("丙", "3", "30"), ("丁", "4", "9")),
        ]  # fmt: skip
    other = table(750, ("城市", "人口", "面积"), ("京", "2", "1"))
    assert read(pdf([pages[0], other]), "a.pdf").blocks[1].rows[0] == ("城市", "人口", "面积")


@pytest.mark.parametrize(("rotate", "turned"), [(0, 0), (90, 90), (180, 180), (270, 270)])
def test_raised_and_lowered_letters(read, rotate, turned):
    """10⁵ was 105."""
    line = [(0, 0, 12, "共3×10"), (60, 6, 7, "5"), (68, 0, 12, "平方米含氢"), (128, -3, 7, "2"), (136, 0, 12, "完")]
    turn = {0: lambda x, y: (50 + x, 700 + y), 90: lambda x, y: (300 - y, 50 + x),
            180: lambda x, y: (500 - x, 700 - y), 270: lambda x, y: (300 + y, 700 - x)}[turned]  # fmt: skip
    words = [(*turn(x, y), size, text) for x, y, size, text in line]
    (text,) = texts(read(pdf([Page(words, rotate=rotate, turned=turned)]), "a.pdf"))
    assert text.replace(" ", "") == "共3×10⁵平方米含氢₂完"


@pytest.mark.parametrize("rotate, turned, place", [(90, 90, (100, 50)), (180, 180, (500, 700)), (270, 270, (500, 700))])
def test_a_rotated_page_is_read_upright(read, rotate, turned, place):
    step = {90: (18, 0), 180: (0, 18), 270: (-18, 0)}[turned]
    words = [
        (place[0] + i * step[0], place[1] + i * step[1], 12, text)
        for i, text in enumerate(("第一行的文字。", "第二行的文字。"))
    ]
    assert texts(read(pdf([Page(words, rotate=rotate, turned=turned)]), "a.pdf")) == [
        "第一行的文字。",
        "第二行的文字。",
    ]


def test_what_the_crop_box_hides_is_not_read(read):
    page = Page([(50, 700, 12, "看得见"), (50, 100, 12, "看不见")], crop=(0, 400, 600, 800))
    assert texts(read(pdf([page]), "a.pdf")) == ["看得见"]


def test_pages_count_from_1_and_have_labels(read):
    pages = [Page(lines(700, text)) for text in ("序言在这里。", "目录在这里。", "正文在这里。")]
    document = read(pdf(pages, labels="0 << /S /r >> 2 << /S /D >>"), "a.pdf")
    assert [(b.page, b.text) for b in document.blocks] == [
        (1, "序言在这里。"),
        (2, "目录在这里。"),
        (3, "正文在这里。"),
    ]
    assert [(p.number, p.label) for p in document.pages] == [(1, "i"), (2, "ii"), (3, "1")]


def test_a_passage_over_a_page_break_has_both_pages(read):
    document = read(pdf([Page(lines(60, "这句话从第一页")), Page(lines(750, "一直写到第二页。"))]), "a.pdf")
    assert [(b.page, b.text) for b in document.blocks] == [(1, "这句话从第一页"), (2, "一直写到第二页。")]


# --- pages without text -----------------------------------------------------------------------------------------------


def scan(text: str) -> Page:
    """A page that is a picture of `text`."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("L", (600, 800), 255)
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 28)
    ImageDraw.Draw(picture).text((60, 100), text, fill=0, font=font)
    return Page(image=(600, 800, picture.tobytes()))


MIXED = [Page(lines(700, "这一页有文字。")), "Spring garden 2024", Page()]


def mixed() -> bytes:
    return pdf([page if isinstance(page, Page) else scan(page) for page in MIXED])


def test_only_pages_without_text_are_read_by_ocr(read):
    pytest.importorskip("rapidocr")
    document = read(mixed(), "a.pdf")
    assert [page.state for page in document.pages] == ["text", "ocr", "blank"]
    assert [(b.page, b.text) for b in document.blocks] == [(1, "这一页有文字。"), (2, "Spring garden 2024")]


def test_without_ocr_a_scan_is_unread_and_says_so(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    document = read(mixed(), "a.pdf")
    assert [page.state for page in document.pages] == ["text", "unread", "blank"]
    assert "mengya[ocr]" in document.pages[1].note
    alone = read(pdf([scan("Spring")]), "a.pdf")
    assert alone.blocks == () and "no text was found" in alone.notes


def test_outlines_without_text_and_pictures_are_not_blank(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    document = read(
        pdf([Page(drawing="0 0 0 rg 100 400 300 100 re f\n"), Page(drawing="1 1 1 rg 0 0 600 800 re f\n")]), "a.pdf"
    )
    assert [page.state for page in document.pages] == ["unread", "blank"]


def test_a_text_layer_without_characters_is_none(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    document = read(
        pdf(
            [
                Page(
                    [
                        *lines(700, "\ue001\ue002\ue003\ue004"),
                    ],
                    drawing="0 0 0 rg 9 9 99 99 re f\n",
                )
            ]
        ),
        "a.pdf",
    )
    assert document.pages[0].state == "unread" and document.blocks == ()


def test_a_huge_picture_is_not_decoded(read):
    row = bytes(20_000)
    page = Page(image=(20_000, 5_000, row * 5_000))
    document = read(pdf([page, Page(lines(700, "下一页。"))]), "a.pdf")
    assert document.pages[0].state == "unread" and "100,000,000 pixels" in document.pages[0].note
    assert texts(document) == ["下一页。"]


# --- files that are wrong ---------------------------------------------------------------------------------------------


def test_an_encrypted_file_is_refused(read):
    with pytest.raises(UserError, match="encrypted"):
        read(pdf([Page(lines(700, "秘密"))], encrypted=True), "a.pdf")


def test_a_file_that_is_cut_off(read):
    whole = pdf([Page(lines(700, f"第{n}页。")) for n in range(1, 30)])
    with pytest.raises(UserError, match="damaged or cut off"):
        read(whole[:300], "a.pdf")
    assert "the file seems to be cut off; pages may be missing" in read(whole[:-7], "a.pdf").notes


def test_of_10_000_pages_the_first_are_read(read):
    document = read(pdf([Page(lines(700, "字"))] * 10_000), "a.pdf", pages=20)
    assert len(document.pages) == 20 and document.notes == ("it has 10,000 pages; only the first 20 were read",)


def test_more_characters_than_allowed_are_left_out(read):
    document = read(pdf([Page(lines(700, "一二三四五六七八九十"))] * 5), "a.pdf", characters=25)
    assert [b.page for b in document.blocks] == [1, 2]
    assert "only the first 20 characters were read" in document.notes


def test_lines_that_return_on_every_page_are_read_once(read):
    lines = [
        "春天来了，小草从土里钻出来，嫩嫩的，绿绿的。园子里，",
        "田野里，瞧去，一大片一大片满是的。",
    ]
    pages = []
    for number in range(5, 9):
        words = [(200, 770, 9, "员工手册 第三版"), (500, 770, 9, str(number)), (450, 30, 9, f"第 {number} 页 共 9 页")]
        words += [
            (40, 700, 10, f"单号 {number}{number}7"),
            *((40, 660 - 14 * i, 10, one) for i, one in enumerate(lines)),
        ]
        pages.append(Page(words))
    found = read(pdf(pages), "a.pdf").blocks
    head = [block for block in found if "手册" in block.text]
    assert [block.page for block in head] == [1] and not any("共" in block.text for block in found)
    assert [block.text for block in found if "单号" in block.text] == [f"单号 {n}{n}7" for n in range(5, 9)]
    assert [block.text for block in found if "春天" in block.text] == ["".join(lines)] * 4


def test_what_returns_close_to_the_text_is_no_running_head(read):
    pages = [
        Page(
            [
                (40 + 200 * c, 760 - 14 * r, 10, f"{'型号价格'[2 * c : 2 * c + 2]}{r or ''}")
                for r in range(5)
                for c in (0, 1)
            ]
        )
        for _ in range(4)
    ]
    assert [block.rows[0] for block in read(pdf(pages), "a.pdf").blocks] == [("型号", "价格")] * 4
