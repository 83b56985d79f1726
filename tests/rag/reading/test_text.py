"""Text in its encodings, Markdown and tables as text, and what a file is by its content."""

import pytest

from mengya.errors import UserError
from mengya.rag.reading.encodings import decode
from mengya.rag.reading.names import LONGEST, name_as_text

SIMPLIFIED = "朱镕基和𠮷野家：第一次用四个字节的汉字，写在文本文件里。"
TRADITIONAL = "這是一篇用繁體字寫成的文章，說的是國家和人民的關係。\n第二段也是這樣。"


def blocks(document) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in document.blocks]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", [SIMPLIFIED, TRADITIONAL, "镕", "Plain words.\n好"])
def test_encodings(text, encoding):
    if encoding in ("utf-16-le", "utf-16-be") and text == "镕":
        pytest.skip("two bytes say nothing of their order")
    assert decode(text.encode(encoding)) == (text, ())


def test_traditional_text_is_told_from_gb18030():
    assert decode(TRADITIONAL.encode("big5")) == (TRADITIONAL, ())
    assert decode(TRADITIONAL.encode("gb18030")) == (TRADITIONAL, ())
    assert decode("臺灣".encode("big5"))[0] != "臺灣".encode("big5").decode("gb18030")


@pytest.mark.parametrize(
    "encoding, text",
    [
        ("cp932", "東京都の人口は約千四百万人である。"),
        ("cp932", "ご注文ありがとうございます。\n商品：ノート　価格：1200円"),
        ("euc_jp", "契約の解除は三十日前に通知する。"),
        ("cp949", "이것은 한국어 문서입니다. 계약 해지는 30일 전에 통지한다."),
        ("cp1251", "Договор расторгается за тридцать дней."),
        ("koi8_r", "Договор расторгается за тридцать дней."),
    ],
)
def test_other_languages(encoding, text):
    """unstructured#4466, klogg#447."""
    assert decode(text.encode(encoding)) == (text, ())


def test_western_text_and_damaged_text():
    assert decode("Voilà, le café de René coûte 5 €.".encode("cp1252"))[0] == "Voilà, le café de René coûte 5 €."
    text, notes = decode("春天来了，小草从土里钻出来。".encode()[:-1])
    assert text.startswith("春天来了，小草从土里钻出来") and notes == ("1 places could not be decoded as utf-8",)


def test_paragraphs_and_chapters(read):
    text = "第一章 总则\n第一条 为了孩子，\n制定本法。\n\n第二条 下一条。\n"
    document = read(text.encode("gb18030"), "法.txt")
    assert blocks(document) == [
        ("heading", "第一章 总则"),
        ("text", "第一条 为了孩子，\n制定本法。"),
        ("text", "第二条 下一条。"),
    ]
    assert document.kind == "text" and document.blocks[0].level == 2
    assert blocks(read("一行\n又一行".encode(), "a.txt")) == [("text", "一行"), ("text", "又一行")]


def test_markdown(read):
    text = """---
title: 说明
---
# 标题 *斜*

段落一 [链接](https://example.com) ![图](x.png)
还是段落一

- 甲
  1. 乙
- 丙

| 名 | 价 |
|---|---|
| 竹 | 3 \\| 4 |

```python
if x:
    y()
```
<div>内</div>
"""
    document = read(text.encode(), "a.md")
    assert blocks(document) == [
        ("text", "title: 说明"),
        ("heading", "标题 斜"),
        ("text", "段落一 链接〔https://example.com〕 图\n还是段落一"),
        ("text", "- 甲\n  1. 乙\n- 丙"),
        ("table", "名 | 价\n竹 | 3 | 4"),
        ("text", "if x:\n    y()"),
        ("text", "内"),
    ]
    assert document.blocks[4].rows == (("名", "价"), ("竹", "3 | 4"))


def test_footnotes_of_markdown_are_no_addresses(read):
    """markdown-it-py takes a footnote in one word, as Chinese is, for the address of a link."""
    document = read(
        "甲方付款[^1]，见[附件][2]。\n\n[^1]: 指三日内付款。\n\n[2]: https://example.com\n".encode(), "a.md"
    )
    assert blocks(document) == [
        ("text", "甲方付款[^1]，见附件〔https://example.com〕。"), ("text", "[^1]: 指三日内付款。"),
    ]  # fmt: skip


def test_characters_that_json_escapes(read):
    """As Python does: wiktextract#18."""
    text = r'{"问": "\u4ef7\u683c\ud83c\udf31", "path": "C:\\u0041", "line": "a\nb"}'
    expected = r'{"问": "价格🌱", "path": "C:\\u0041", "line": "a\nb"}'
    assert blocks(read(text.encode(), "a.jsonl")) == [("text", expected)]
    assert blocks(read(text.encode(), "a.txt")) == [("text", text)]


def test_places_where_a_word_may_be_cut_are_not_read(read):
    assert blocks(read("违\u200b约 con\u00adtract".encode(), "a.txt")) == [("text", "违约 contract")]


@pytest.mark.parametrize(
    "text, rows",
    [
        ('a,b\n1,"x\ny"\n', (("a", "b"), ("1", "x y"))),
        ("名;价\n竹;3,5\n", (("名", "价"), ("竹", "3,5"))),
        ("sep=;\n名;价\n", (("名", "价"),)),
        ('a\tb\n1"\t2\n', (("a", "b"), ('1"', "2"))),
        ("只有一列\n一\n", (("只有一列",), ("一",))),
        ("1,5;2,5\n3,5;4,5\n", (("1,5", "2,5"), ("3,5", "4,5"))),
        ("名,数\n竹,1;2:3;4\n松,5\n", (("名", "数"), ("竹", "1;2:3;4"), ("松", "5"))),
        ('a,b\n"x" y,2\n"m\nn",3\n', (("a", "b"), ("x y", "2"), ("m n", "3"))),
        ('a,b\n1,"x\n2,y\n', (("a", "b"), ("1", '"x'), ("2", "y"))),
        ("a,b\0\n1,2\n", (("a", "b"), ("1", "2"))),
    ],
)
def test_tables_as_text(read, text, rows):
    assert read(text.encode("gb18030"), "a.csv").blocks[0].rows == rows


@pytest.mark.parametrize("title", ["报表\n\n", "报表;;\n"])
def test_a_title_above_a_table_as_text(read, title):
    document = read(f"{title}名;价;量\n竹;3,5;2\n松;4,5;1\n".encode(), "a.csv")
    assert blocks(document) == [("text", "报表"), ("table", "名 | 价 | 量\n竹 | 3,5 | 2\n松 | 4,5 | 1")]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_zero_bytes_and_every_kind_of_line_end(read, encoding):
    content = "第一行的内容\0\r\n第二行的内容\r第三行的内容\x0c第四页的内容\0\n".encode(encoding) + bytes(3000)
    document = read(content, "a.txt")
    assert [text for _, text in blocks(document)] == [f"第{n}的内容" for n in ("一行", "二行", "三行", "四页")]
    assert document.notes == ("3,002 zero bytes were left out",)


def test_markdown_with_tables_of_html_and_what_only_looks_like_front_matter(read):
    text = "---\n\n# 一\n\n---\n<table><tr><th>名</th><th>价</th></tr>\n\n<tr><td>竹</td><td>3</td></tr></table>\n\n"
    text += "~~旧~~ 新\n\n- 项\n\n  | a | b |\n  |---|---|\n  | 1 | 2 |\n- 码\n  ```\n  # 注\n  go\n  ```\n"
    text += "<script>x</script>\n"
    assert blocks(read(text.encode(), "a.md")) == [
        ("heading", "一"),
        ("table", "名 | 价\n竹 | 3"),
        ("text", "〔划去：旧〕 新"),
        ("text", "- 项"),
        ("table", "a | b\n1 | 2"),
        ("text", "- 码\n  # 注\n  go"),
    ]
    assert blocks(read("+++\ntitle = '说明'\n+++\n# 题".encode(), "a.md")) == [
        ("text", "title = '说明'"),
        ("heading", "题"),
    ]


@pytest.mark.parametrize(
    "content, name, kind",
    [
        (b"%PDF-1.7 nothing else", "a.txt", None),
        ("这是文字。".encode(), "a.pdf", "text"),
        (b"a,b\n1,2\n3,4\n", "a.docx", "csv"),
        ("# 题\n\n文".encode(), "无", "markdown"),
        (b"<!DOCTYPE html><p>x</p>", "a.txt", "html"),
        (b"<p>x</p>", "a.html", "html"),
        (b"a < b and c > d", "a.html", "text"),
        ("BMI 指数是什么？".encode(), "a.txt", "text"),
        (b"PK\x03\x04" + bytes(40), "a.docx", None),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(90), "a.docx", None),
        (b"{\\rtf1 x}", "a.docx", None),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "a.txt", None),
        (bytes(range(256)) * 9, "a.txt", None),
    ],
)
def test_the_content_decides_not_the_ending(read, content, name, kind):
    if kind is None:
        with pytest.raises(UserError):
            read(content, name)
    else:
        document = read(content, name)
        assert document.kind == kind and document.blocks
        assert bool(document.notes) == name.endswith((".pdf", ".docx"))


def test_an_encrypted_office_file_is_not_called_an_old_one(read):
    content = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504) + "EncryptedPackage".encode("utf-16-le")
    with pytest.raises(UserError, match="encrypted"):
        read(content, "a.docx")


@pytest.mark.parametrize(
    "name, shown",
    [
        ("【密】合同（终稿）#1%20.pdf", "【密】合同（终稿）#1%20.pdf"),
        ("字" * 300 + ".docx", "字" * (LONGEST - 14) + "…5afd981d.docx"),
        ("..\\x.txt", "..\\x.txt"),
        ("../../x", "../../x"),
        ("CON.txt", "CON.txt"),
        ("🌱.md", "🌱.md"),
        ("cafe\u0301.txt", "café.txt"),
        ("a\u202etxt.exe", "atxt.exe"),
        ("a\u200f.txt\n", "a.txt"),
        ("\x00\udcff", "unnamed"),
        (".env", ".env"),
    ],
)
def test_names_stay_as_text(name, shown):
    assert name_as_text(name) == shown
