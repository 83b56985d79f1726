"""What would be wrong as plain letters: powers, what is crossed out, formulas, numbers of lists, coded pictures."""

import base64
import random

import pytest

from mengya.errors import UserError


def texts(document) -> list[str]:
    return [block.text for block in document.blocks]


def page(body: str) -> bytes:
    return f"<html><body>{body}</body></html>".encode()


def test_raised_and_crossed_out_letters(read):
    """docxtractr#38 and markitdown PR#2356."""
    body = (
        "<p>3×10<sup>5</sup> m<sup>2</sup>，H<sub>2</sub>O，见注<sup>[1]</sup></p><p>原价<del>100元</del>，现价80元，"
        "<span style='text-decoration: line-through'>旧约</span></p><table><tr><th>甲</th><th>乙</th></tr>"
        "<tr><td>x<sup>2</sup></td><td><b>Price: </b><s>9</s> 8</td></tr></table>"
    )
    assert texts(read(page(body), "a.html")) == [
        "3×10⁵ m²，H₂O，见注[1]", "原价〔划去：100元〕，现价80元，〔划去：旧约〕", "甲 | 乙\nx² | Price: 〔划去：9〕 8",
    ]  # fmt: skip
    text = "3×10<sup>5</sup> m，H<sub>2</sub>O，~~旧~~，<del>删</del>，[a](https://example.org/b)。"
    assert texts(read(text.encode(), "a.md")) == [
        "3×10⁵ m，H₂O，〔划去：旧〕，〔划去：删〕，a〔https://example.org/b〕。"
    ]


MATH = (
    "<math alttext='{\\displaystyle E=mc^{2}}'><semantics><mrow><mi>E</mi><mo>=</mo><mi>m</mi><msup><mi>c</mi>"
    "<mn>2</mn></msup></mrow><annotation encoding='application/x-tex'>{\\displaystyle E=mc^{2}}</annotation>"
    "</semantics></math>"
)


@pytest.mark.parametrize(
    ("formula", "told"),
    [
        (
            "<span class='mwe-math-element'><span class='mwe-math-mathml-inline mwe-math-mathml-a11y' "
            f"style='display: none;'>{MATH}</span><img class='mwe-math-fallback-image-inline' aria-hidden='true' "
            "alt='{\\displaystyle E=mc^{2}}'></span>",
            "$E=mc^{2}$",
        ),
        (
            f"<span class='katex'><span class='katex-mathml'>{MATH}</span>"
            "<span class='katex-html' aria-hidden='true'>E=mc2</span></span>",
            "$E=mc^{2}$",
        ),
        ("<script type='math/tex'>E=mc^2</script>", "$E=mc^2$"),
        ("<math><mfrac><mn>1</mn><mi>x</mi></mfrac><msqrt><mi>y</mi></msqrt></math>", "(1)/(x)√(y)"),
    ],
)
def test_formulas_of_web_pages_are_read_once(read, formula, told):
    """trafilatura#792, Unstructured PR#4478."""
    assert texts(read(page(f"<p>公式 {formula} 在此。</p>"), "a.html")) == [f"公式 {told} 在此。"]
    table = f"<table><tr><th>名</th><th>式</th></tr><tr><td>能</td><td>{formula}</td></tr></table>"
    assert texts(read(page(table), "a.html")) == [f"名 | 式\n能 | {told}"]


def test_formulas_of_markdown_keep_their_signs(read):
    text = "式 $a*b*c$ 与 $\\{x\\}$，\\(c_d*e*f\\)，\\[注\\]，$5 与 $10。\n\n$$\na \\\\\n=\nb\n- c\n$$\n\n后。\n"
    assert texts(read(text.encode(), "a.md")) == [
        "式 $a*b*c$ 与 $\\{x\\}$，\\(c_d*e*f\\)，[注]，$5 与 $10。", "$$\na \\\\\n=\nb\n- c\n$$", "后。",
    ]  # fmt: skip


def test_numbers_of_lists_are_those_of_the_page(read):
    lists = (
        "<ol><li value='5'>五</li><li>六</li></ol><ol type='a'><li>甲</li><li>乙</li></ol>"
        "<ol reversed><li>二</li><li>一</li></ol><ol start='-1' type='I'><li>负</li></ol>"
    )
    assert texts(read(page(lists), "a.html")) == ["5. 五\n6. 六", "a. 甲\nb. 乙", "2. 二\n1. 一", "-1. 负"]


def test_frames_are_told(read):
    frames = b"<html><head><title>T</title></head><frameset><frame src='a.html'><frame src='b.html'></frameset></html>"
    document = read(frames, "a.html")
    assert texts(document) == ["T"]
    assert document.notes == ("left out: 2 frames, which are pages of their own",)


def test_pictures_that_are_written_as_letters_are_left_out(read):
    """Engram#1619, openrag#732, R2R PR#2281."""
    coded = base64.b64encode(random.Random(0).randbytes(3000)).decode()
    lines = base64.encodebytes(random.Random(1).randbytes(3000)).decode()
    document = read(f"前\n\n![图](data:image/svg+xml;base64,{coded})\n\n{lines}\n\n后".encode(), "a.md")
    assert texts(document) == ["前", "![图]()", "后"]
    assert document.notes[0].startswith("left out: 8,") and "base64" in document.notes[0]
    told = read(f'{{"png": "{coded}", "text": "字"}}'.encode(), "a.json")
    assert texts(told) == ['{"png": "", "text": "字"}']
    kept = f"{'ACGT' * 200} {'0123456789abcdef' * 40} {'春天来了' * 200} https://example.org/{'aB3/' * 20}"
    assert texts(read(kept.encode(), "a.txt")) == [kept]


def test_colours_of_a_terminal_are_no_text(read):
    assert texts(read(b"\x1b[31merror\x1b[0m \x1b[1;32mok\x1b[K", "a.log")) == ["error ok"]


def test_lines_in_two_encodings(read):
    """A log that two programs have written: half of it was mojibake."""
    new, old = "这是一行用现代编码写的文字，内容是春天来了。", "这是一行用旧编码写的文字，内容是秋天到了。"
    for parts in ((new, old), (old, new, old, old)):
        data = b"".join(f"{part}\n".encode("utf-8" if part is new else "gbk") for part in parts)
        document = read(data, "a.txt")
        assert texts(document) == list(parts)
        assert document.notes == ("two encodings are mixed, utf-8 and gb18030; each line was read in its own",)


def test_latin_1_is_what_browsers_take_for_it(read):
    head = b'<html><head><meta charset="ISO-8859-1"></head><body><p>'
    assert texts(read(head + b"Price \x80 5, \x93caf\xe9\x94</p></body></html>", "a.html")) == ["Price € 5, “café”"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('<?mso-application progid="Excel.Sheet"?><Workbook/>', "save it as xlsx"),
        ("<w:wordDocument/>", "save it as docx"),
        ("<office:document/>", "save it as docx"),
    ],
)
def test_office_files_in_xml_are_refused(read, content, what):
    with pytest.raises(UserError, match=what):
        read(f'<?xml version="1.0"?>{content}'.encode(), "a.xls")
