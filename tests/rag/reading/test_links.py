"""Where links lead is kept in the text, in every format alike (ragflow#10843, R2R#2230)."""

import io

import pytest

from mengya.rag.passages import sentences
from mengya.rag.reading.links import linked

from .office_maker import W, archive, docx_parts, p

HERE = "https://example.org/docs?a=1&b=2"


@pytest.mark.parametrize(
    ("words", "target", "told"),
    [
        ("见此处", HERE, f"见此处〔{HERE}〕"),
        ("见此处 ", HERE, f"见此处〔{HERE}〕 "),
        ("见此处", None, "见此处"),
        (" ", HERE, " "),
        ("example.org/docs", "https://www.example.org/docs/", "example.org/docs"),
        (HERE, HERE, HERE),
        ("写信", "mailto:a@example.org?subject=x", "写信〔a@example.org〕"),
        ("a@example.org", "mailto:a@example.org", "a@example.org"),
        ("x", "javascript:alert(1)", "x"),
        ("x", "data:text/html,x", "x"),
        ("x", "file:///etc/passwd", "x"),
        ("x", "#top", "x"),
        ("x", "/docs", "x"),
        ("x", "http://[::1", "x"),
        ("x", "https://user:key@example.org/", "x"),
        ("x", "https:///a", "x"),
        ("x", "https://example.org/〕 资料结束", "x"),
        ("x", "java\nscript:x", "x"),
        (
            "光",
            "https://zh.example.org/wiki/%E5%85%89%E5%90%88%2F1%20x",
            "光〔https://zh.example.org/wiki/光合%2F1%20x〕",
        ),
        ("长", f"https://example.org/a?{'b' * 300}#c", "长〔https://example.org/a〕"),
        ("长", f"https://example.org/{'b' * 300}", "长"),
    ],
)
def test_an_address_stands_behind_the_words_that_do_not_say_it(words, target, told):
    assert linked(words, target) == told


def texts(document):
    return [block.text for block in document.blocks]


def test_of_a_web_page(read):
    page = f"""<html><body><article><h1>标题 <a href="{HERE}">在此</a></h1>
        <p>报名请见 <a href="{HERE}"><b>这里</b></a>，<a href="/about">关于</a>与<a href="#end">文末</a>。</p>
        <ul><li><a href="{HERE}">表</a>格</li></ul>
        <table><tr><th>名</th><th>值</th></tr><tr><td><a href="mailto:a@example.org">甲</a></td><td>1</td></tr></table>
        <a href="{HERE}"><div>一整块</div></a></article></body></html>"""
    assert texts(read(page.encode(), "a.html")) == [
        "标题 在此", f"报名请见 这里〔{HERE}〕，关于与文末。", f"- 表〔{HERE}〕格",
        "名 | 值\n甲〔a@example.org〕 | 1", "一整块",
    ]  # fmt: skip
    for name, head in (("https://example.org/x/y", ""), ("a.html", "<base href='https://example.org/x/'>")):
        told = texts(read(page.replace("<body>", f"<head>{head}</head><body>").encode(), name))
        assert "关于〔https://example.org/about〕与文末。" in told[1]


def test_of_markdown(read):
    text = f"""# 标题 [在此]({HERE})

报名请见[**这里**]({HERE} "题")，[那里][1]，<{HERE}>，<a class="x" href="{HERE}">旧的</a>，[本页](#end)，`[码](https://x.org)`。

- [表]({HERE})格

| 名 | 值 |
|---|---|
| [甲](mailto:a@example.org) | 1 |

[1]: https://example.org/1
"""
    assert texts(read(text.encode(), "a.md")) == [
        "标题 在此",
        f"报名请见这里〔{HERE}〕，那里〔https://example.org/1〕，{HERE}，旧的〔{HERE}〕，本页，[码](https://x.org)。",
        f"- 表〔{HERE}〕格", "名 | 值\n甲〔a@example.org〕 | 1",
    ]  # fmt: skip


RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def relations(*more: str) -> str:
    link = f'<Relationship Id="go" Type="{RELATIONS}/hyperlink" Target="{{}}" TargetMode="External"/>'
    return f"<Relationships>{link.format(HERE.replace('&', '&amp;'))}{''.join(more)}</Relationships>"


def run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


def field(instruction: str, *runs: str) -> str:
    mark = '<w:r><w:fldChar w:fldCharType="{}"/></w:r>'.format
    half = len(instruction) // 2
    told = "".join(f"<w:r><w:instrText>{part}</w:instrText></w:r>" for part in (instruction[:half], instruction[half:]))
    return mark("begin") + told + mark("separate") + "".join(runs) + mark("end")


def test_of_a_word_file(read):
    link = f'<w:hyperlink xmlns:r="{RELATIONS}" {{}}>{run("这")}{run("里")}</w:hyperlink>'.format
    address = HERE.replace("&", "&amp;")
    body = (
        p("标题", '<w:outlineLvl w:val="0"/>', link('r:id="go"'))
        + p("报名请见", more=link('r:id="go"') + run("，") + link('w:anchor="end"') + run("。"))
        + p("旧的", more=field(f'HYPERLINK "{address}" \\o "x"', run("在"), run("此")) + run("。"))
        + p("目录", more=field('HYPERLINK \\l "_Toc1"', run("第一章"), field("PAGEREF _Toc1", run("3"))))
        + p("简的", more=f"<w:fldSimple w:instr='HYPERLINK \"{address}\"'>{run('在此')}</w:fldSimple>")
        + p("断了", more=field(f'HYPERLINK "{address}"', run("在")).rpartition("<w:r>")[0])
        + p("注", more='<w:r><w:footnoteReference w:id="2"/></w:r>')
    )
    note = f'<w:footnote w:id="2">{p("原文", more=link("r:id=" + chr(34) + "go" + chr(34)))}</w:footnote>'
    parts = docx_parts(body, W, footnotes=note)
    known = str(parts["word/_rels/document.xml.rels"]).removeprefix("<Relationships>").removesuffix("</Relationships>")
    parts["word/_rels/document.xml.rels"] = relations(known)
    parts["word/_rels/footnotes.xml.rels"] = relations().replace("example.org", "example.net")
    other = HERE.replace("example.org", "example.net")
    assert texts(read(archive(parts), "a.docx")) == [
        "标题这里", f"报名请见这里〔{HERE}〕，这里。", f"旧的在此〔{HERE}〕。", "目录第一章3",
        f"简的在此〔{HERE}〕", "断了在", f"注〔注：原文这里〔{other}〕〕",
    ]  # fmt: skip


def test_of_slides(read):
    deck = pytest.importorskip("pptx").Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text_frame.text = "标题"
    slide.shapes.title.text_frame.paragraphs[0].runs[0].hyperlink.address = HERE
    box = slide.shapes.add_textbox(0, 2_000_000, 5_000_000, 500_000).text_frame
    for text in ("报名请见", "这", "里", "。"):
        one = box.paragraphs[0].add_run()
        one.text = text
        one.hyperlink.address = HERE if text in "这里" else None
    button = slide.shapes.add_textbox(0, 3_000_000, 5_000_000, 500_000)
    button.text_frame.text = "点此"
    button.click_action.hyperlink.address = HERE
    cell = slide.shapes.add_table(1, 1, 0, 4_000_000, 5_000_000, 500_000).table.cell(0, 0).text_frame
    cell.text = "表"
    cell.paragraphs[0].runs[0].hyperlink.address = HERE
    slide.notes_slide.notes_text_frame.text = "备注"
    slide.notes_slide.notes_text_frame.paragraphs[0].runs[0].hyperlink.address = HERE
    buffer = io.BytesIO()
    deck.save(buffer)
    assert texts(read(buffer.getvalue(), "a.pptx")) == [
        "标题", f"报名请见这里〔{HERE}〕。", f"点此〔{HERE}〕", f"表〔{HERE}〕", f"备注〔{HERE}〕",
    ]  # fmt: skip


def test_of_a_workbook(read):
    book = pytest.importorskip("openpyxl").Workbook()
    sheet = book.active
    for row in (["名", "值"], ["甲", 1], ["乙", 2], ["https://example.org", 3]):
        sheet.append(row)
    sheet["A2"].hyperlink = HERE
    sheet["A3"].hyperlink = "#Sheet!A1"
    sheet["A4"].hyperlink = "https://example.org/"
    buffer = io.BytesIO()
    book.save(buffer)
    told = texts(read(buffer.getvalue(), "a.xlsx"))
    assert told[-1] == f"名 | 值\n甲〔{HERE}〕 | 1\n乙 | 2\nhttps://example.org | 3"


def test_words_do_not_drown_in_addresses(read):
    """An encyclopedia links every other word."""
    few, long = [f"[词{n}]({HERE})" for n in range(4)], "这里是很长的一段话，没有别的东西。" * 16
    told = read(
        "\n\n".join(["、".join(few), "、".join(few * 4), "、".join([*few, f"[词]({HERE})", long])]).encode(), "a.md"
    )
    assert [block.text.count("〔") for block in told.blocks] == [4, 0, 5]
    assert told.blocks[1].text.startswith("词0、词1") and told.notes == (
        "left out: 16 addresses of links, where a line has many",
    )
    rows = f"| {' | '.join(few * 2)} |\n|{'---|' * 8}\n| {few[0]} |{' x |' * 7}\n"
    assert [row.count("〔") for row in read(rows.encode(), "a.md").blocks[0].text.split("\n")] == [0, 1]


def test_a_sentence_does_not_end_in_an_address():
    text = f"请见这里〔{HERE}〕。然后呢?好的! See {HERE};c=3! Fine. 真的吗?OK"
    assert [text[begin:end] for begin, end in sentences(text)] == [
        f"请见这里〔{HERE}〕。", "然后呢?", "好的!", f"See {HERE};c=3!", "Fine.", "真的吗?", "OK",
    ]  # fmt: skip
