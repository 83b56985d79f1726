"""Word files: what lies outside the running text, and numbers that stand nowhere."""

import io

import pytest

from mengya.rag.reading.numerals import numeral

from .office_maker import STRICT, docx, docx_drawing, docx_with, level, numbered, numbering, p


def texts(document) -> list[str]:
    return [block.text for block in document.blocks]


BOX = "<w:txbxContent>" + p("框里的话。") + "</w:txbxContent>"
NAMESPACES = (
    'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" xmlns:v="urn:schemas-microsoft-com:vml" '
    'xmlns:wps="http://schemas.microsoft.com/office/word/2010/wordprocessingShape"'
)
TWICE = (
    f"<w:r><mc:AlternateContent {NAMESPACES}><mc:Choice Requires='wps'><w:drawing><wps:txbx>{BOX}</wps:txbx>"
    f"</w:drawing></mc:Choice><mc:Fallback><w:pict><v:textbox>{BOX}</v:textbox></w:pict></mc:Fallback></mc:AlternateContent></w:r>"
)


def test_text_boxes_headers_and_footnotes(read):
    mark = '<w:r><w:footnoteReference w:id="2"/></w:r><w:r><w:t>后文。</w:t></w:r>'
    content = docx(
        p("正文", more=TWICE) + p("前文", more=mark),
        footnotes=f'<w:footnote w:id="2">{p("脚注的话。")}</w:footnote>',
        header1=p("公司名称"),
        header2=p("公司名称"),
        footer1=p("第 1 页 共 3 页"),
    )
    assert texts(read(content, "a.docx")) == ["正文", "框里的话。", "前文〔注：脚注的话。〕后文。", "公司名称"]


def test_footnotes_whose_part_is_missing(read):
    document = read(docx(p("前", more='<w:r><w:footnoteReference w:id="2"/></w:r>')), "a.docx")
    assert texts(document) == ["前"] and document.notes == ("left out: footnotes that the file lacks (1)",)


ARTICLES = level(0, "chineseCountingThousand", "第%1条")
OUTLINE = level(0, "decimal", "%1") + level(1, "decimal", "%1.%2")


def test_automatic_numbers(read):
    table = "<w:tbl><w:tr><w:tc>" + p("甲") + "</w:tc><w:tc>" + p("乙") + "</w:tc></w:tr></w:tbl>"
    start = '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="1"/></w:lvlOverride>'
    again = f'<w:num w:numId="9"><w:abstractNumId w:val="1"/>{start}</w:num>'
    body = numbered("总则", 1) + numbered("范围", 1) + table + numbered("期限", 1)
    body += p("新的一章", '<w:outlineLvl w:val="0"/>') + numbered("又从头", 9) + numbered("接着", 9)
    document = read(docx(body, numbering=numbering(ARTICLES, restarts=again)), "a.docx")
    assert texts(document) == [
        *("第一条 总则", "第二条 范围", "甲 | 乙", "第三条 期限", "新的一章", "第一条 又从头", "第二条 接着"),
    ]
    assert document.blocks[4].kind == "heading"


def test_levels_restart_under_the_one_above(read):
    body = "".join(numbered(text, 1, at) for text, at in (("a", 0), ("b", 1), ("c", 1), ("d", 0), ("e", 1)))
    document = read(docx(body, numbering=numbering(OUTLINE)), "a.docx")
    assert texts(document) == ["1 a", "1.1 b", "1.2 c", "2 d", "2.1 e"]


def test_numbers_and_headings_of_styles(read):
    styles = """
    <w:style w:type="paragraph" w:styleId="1"><w:name w:val="heading 1"/><w:pPr><w:numPr><w:numId w:val="1"/></w:numPr>
    <w:outlineLvl w:val="0"/></w:pPr></w:style>
    <w:style w:type="paragraph" w:styleId="2"><w:name w:val="heading 2"/><w:basedOn w:val="1"/><w:pPr><w:numPr>
    <w:ilvl w:val="1"/></w:numPr><w:outlineLvl w:val="1"/></w:pPr></w:style>"""
    body = p("总则", '<w:pStyle w:val="1"/>') + p("范围", '<w:pStyle w:val="2"/>')
    document = read(docx(body, numbering=numbering(OUTLINE), styles=styles), "a.docx")
    assert [(b.kind, b.level, b.text) for b in document.blocks] == [
        ("heading", 1, "1 总则"),
        ("heading", 2, "1.1 范围"),
    ]


@pytest.mark.parametrize(
    "form, numbers",
    {
        "decimal": {3: "3"},
        "upperRoman": {4: "IV", 1999: "MCMXCIX"},
        "lowerLetter": {1: "a", 27: "aa"},
        "chineseCountingThousand": {
            1: "一",
            10: "十",
            11: "十一",
            20: "二十",
            105: "一百零五",
            110: "一百一十",
            1003: "一千零三",
        },
        "chineseLegalSimplified": {1: "壹", 15: "壹拾伍"},
        "ideographDigital": {10: "一〇"},
        "ideographTraditional": {3: "丙"},
        "ideographZodiac": {12: "亥"},
        "decimalEnclosedCircle": {1: "①", 21: "㉑"},
        "decimalFullWidth": {12: "１２"},
        "somethingNew": {7: "7"},
    }.items(),
)
def test_numerals(form, numbers):
    assert {number: numeral(number, form) for number in numbers} == numbers


def test_merged_cells_tracked_changes_and_hidden_text(read):
    def cell(text, properties=""):
        return f"<w:tc><w:tcPr>{properties}</w:tcPr>{p(text)}</w:tc>"

    row = "<w:tr>{}</w:tr>".format
    table = row(cell("区") + cell("店")) + row(cell("华东", '<w:vMerge w:val="restart"/>') + cell("一"))
    table += row(cell("", "<w:vMerge/>") + cell("二")) + row(cell("合计", '<w:gridSpan w:val="2"/>'))
    changes = "<w:ins><w:r><w:t>加上</w:t></w:r></w:ins><w:del><w:r><w:delText>删去</w:delText></w:r></w:del>"
    hidden = "<w:r><w:rPr><w:vanish/></w:rPr><w:t>藏着</w:t></w:r>"
    document = read(docx(f"<w:tbl>{table}</w:tbl>" + p("原文", more=changes + hidden)), "a.docx")
    assert document.blocks[0].rows == (("区", "店"), ("华东", "一"), ("华东", "二"), ("合计", ""))
    assert document.blocks[1].text == "原文加上"
    assert document.notes == ("left out: deleted passages (tracked changes) (1)", "left out: hidden passages (1)")


def test_a_form_says_what_is_chosen(read):
    """pandoc#8211, tika-python#358, docling#858."""

    def form(inside, kind):
        begin = f'<w:r><w:fldChar w:fldCharType="begin"><w:ffData>{inside}</w:ffData></w:fldChar></w:r>'
        return f'{begin}<w:r><w:instrText>{kind}</w:instrText></w:r><w:r><w:fldChar w:fldCharType="end"/></w:r>'

    def box(inside):
        return form(f"<w:checkBox>{inside}</w:checkBox>", "FORMCHECKBOX")

    def say(text, properties=""):
        return f"<w:r><w:rPr>{properties}</w:rPr><w:t>{text}</w:t></w:r>"

    font = '<w:rFonts w:ascii="Wingdings 2" w:hAnsi="Wingdings 2"/>'
    boxes = (
        box('<w:default w:val="1"/>') + say("同意") + box('<w:default w:val="1"/><w:checked w:val="0"/>') + say("反对")
    )
    entries = '<w:listEntry w:val="甲"/><w:listEntry w:val="乙"/>'
    body = p(more=boxes) + p(more=form(f'<w:ddList><w:result w:val="1"/>{entries}</w:ddList>', "FORMDROPDOWN"))
    body += p(more='<w:r><w:sym w:font="Wingdings" w:char="F0FE"/></w:r>' + say("是") + say("\xa3", font) + say("否"))
    body += p(more=say("R", font) + say("有"))
    assert texts(read(docx(body), "a.docx")) == ["☑同意☐反对", "乙", "☑是☐否", "☑有"]


def test_styles_that_hide_and_paragraphs_whose_end_is_deleted(read):
    """vandalizer#823, bokuweb/docx-rs#794."""
    styles = "".join(
        f'<w:style w:type="{kind}" w:styleId="{name}"><w:name w:val="{name}"/><w:rPr><w:vanish/></w:rPr></w:style>'
        for kind, name in (("character", "C"), ("paragraph", "P"))
    )
    hidden = '<w:r><w:rPr><w:rStyle w:val="C"/></w:rPr><w:t>藏着</w:t></w:r>'
    shown = '<w:r><w:rPr><w:rStyle w:val="C"/><w:vanish w:val="0"/></w:rPr><w:t>露出</w:t></w:r>'
    body = p("甲方", more=hidden + shown) + p("也藏着", '<w:pStyle w:val="P"/>')
    body += p("甲方应当", "<w:rPr><w:del/></w:rPr>") + p("付款。") + p("完", "<w:rPr><w:del/></w:rPr>")
    document = read(docx(body, styles=styles), "a.docx")
    assert texts(document) == ["甲方露出", "甲方应当付款。", "完"]
    assert document.notes == ("left out: hidden passages (2)",)


def test_pictures_are_told_and_counted(read):
    """docling#886, cherry-studio#19095: a scan in a Word file is lost without a word."""

    def picture(about, width):
        inside = f'<x:extent cx="{width}" cy="2000000"/><x:docPr descr="{about}"/><x:blip/>'
        return f'<w:r><w:drawing xmlns:x="x">{inside}</w:drawing></w:r>'

    body = p("见", more=picture("甲与乙相连", 5_000_000)) + p("下文", more=picture("IMG_256", 300_000))
    document = read(docx(body), "a.docx")
    assert texts(document) == ["见〔图：甲与乙相连〕", "下文"]
    (note,) = document.notes
    assert note.startswith("left out: pictures, whose text is not read") and note.endswith("(1)")


def test_controls_are_read_but_for_what_they_ask_for(read):
    def control(inside, properties=""):
        return f"<w:sdt><w:sdtPr>{properties}</w:sdtPr><w:sdtContent>{inside}</w:sdtContent></w:sdt>"

    run, prompt = "<w:r><w:t>{}</w:t></w:r>".format, "<w:showingPlcHdr/>"
    cells = control(f"<w:tc>{control(p('甲'))}</w:tc>") + f"<w:tc>{control(p('请选择'), prompt)}{p('乙')}</w:tc>"
    gone = f"<w:tc><w:tcPr><w:cellDel/></w:tcPr>{p('删去')}</w:tc>"
    table = f"<w:tbl>{control(f'<w:tr>{cells}{gone}</w:tr>')}</w:tbl>"
    body = p("姓名：", more=control(run("张三"))) + p("电话：", more=control(run("单击此处输入"), prompt))
    document = read(docx(body + control(p("一段")) + control(p("单击此处输入"), prompt) + control(table)), "a.docx")
    assert texts(document) == ["姓名：张三", "电话：", "一段", "甲 | 乙"]
    assert document.notes == ("left out: deleted passages (tracked changes) (1)",)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.html", "<p>页里的话。</p><script>x()</script>".encode(), "页里的话。"),
        ("a.TXT", "文里的话。".encode("gb18030"), "文里的话。"),
        ("a.docx", b"PK", None),
    ],
)
def test_a_file_that_a_program_has_put_in(read, name, content, found):
    relation = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships" r:id="chunk"'
    document = read(docx_with(p("前") + f"<w:altChunk {relation}/>" + p("后"), name, content), "a.docx")
    assert texts(document) == ["前", *([found] if found else []), "后"]
    assert ("left out: files inside of it (1)" in document.notes) == (found is None)


def test_a_strict_file_is_read_too(read):
    assert texts(read(docx(p("正文"), namespace=STRICT), "a.docx")) == ["正文"]


def test_a_file_of_another_library(read):
    docx_library = pytest.importorskip("docx")
    made = docx_library.Document()
    made.add_heading("题", 1)
    made.add_paragraph("一段\n两行")
    made.add_paragraph("条", style="List Number")
    table = made.add_table(2, 2)
    for i, text in enumerate("甲乙丙丁"):
        table.cell(i // 2, i % 2).text = text
    buffer = io.BytesIO()
    made.save(buffer)
    document = read(buffer.getvalue(), "a.docx")
    assert [(b.kind, b.text) for b in document.blocks] == [
        ("heading", "题"),
        ("text", "一段\n两行"),
        ("text", "1. 条"),
        ("table", "甲 | 乙\n丙 | 丁"),
    ]


def test_charts_and_diagrams_are_read(read):
    """office_oxide#273 and #271, python-docx#1486, markitdown#76."""
    point = '<c:pt idx="0"><c:v>{}</c:v></c:pt>'.format
    series = f"<c:tx>{point('甲')}</c:tx><c:cat>{point('一月')}</c:cat><c:val>{point('12.50')}</c:val>"
    title = "<a:p><a:r><a:t>销量图</a:t></a:r></a:p>"
    chart = f"<c:chartSpace xmlns:c='c' xmlns:a='a'>{title}<c:ser>{series}</c:ser></c:chartSpace>"
    document = read(docx_drawing('<c:chart r:id="rId9"/>', "chart", "charts/chart1.xml", chart), "a.docx")
    assert texts(document) == ["前", "销量图", " | 甲\n一月 | 12.5", "后"] and not document.notes
    diagram = "<d:dataModel xmlns:d='d' xmlns:a='a'><a:p><a:r><a:t>步骤一</a:t></a:r></a:p></d:dataModel>"
    document = read(docx_drawing('<a:relIds r:dm="rId9"/>', "diagramData", "diagrams/data1.xml", diagram), "a.docx")
    assert texts(document) == ["前", "步骤一", "后"]


def test_files_inside_are_told_and_words_that_are_drawn_are_read(read):
    """And a file inside of it was lost without a word."""
    inside = docx_drawing('<o:OLEObject r:id="rId9"/>', "package", "embeddings/a.xlsx", b"PK", around="object")
    document = read(inside, "a.docx")
    assert texts(document) == ["前", "后"] and document.notes == ("left out: files inside of it (1)",)
    drawn = '<v:shape xmlns:v="v"><v:textpath string="样本"/></v:shape>'
    assert texts(read(docx_drawing(drawn, "image", "a.png", b"", around="pict"), "a.docx")) == ["前样本", "后"]


def run(text: str, properties: str) -> str:
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def test_raised_and_crossed_out_letters(read):
    """docxtractr#38: 10⁵ was 105; doxx#47, pi-outpost PR#190, markitdown PR#2356: a clause that is crossed out was one
    that holds."""
    raised, lowered = (f'<w:vertAlign w:val="{place}script"/>' for place in ("super", "sub"))
    body = (
        p("3×10", more=run("-5", raised) + run(" m", "") + run("2", raised) + run("，H", "") + run("2", lowered))
        + p("1", more=run("st", raised))
        + p("原价", more=run("100 ", "<w:strike/>") + run("元", '<w:dstrike w:val="1"/>') + run("80元", ""))
        + p("不是", more=run("划去", '<w:strike w:val="0"/>'))
    )
    assert texts(read(docx(body), "a.docx")) == ["3×10⁻⁵ m²，H₂", "1st", "原价〔划去：100 元〕80元", "不是划去"]


def test_a_page_break_in_a_paragraph_parts_its_words(read):
    broken = p("第一页末尾", more='<w:r><w:br w:type="page"/></w:r>' + run("第二页开头", ""))
    assert texts(read(docx(broken), "a.docx")) == ["第一页末尾\n第二页开头"]


def test_formulas_keep_their_brackets_roots_and_sums(read):
    """As office_oxide#270: formulas were read in part; (x+a)^n was x+a^n, and a root or a sum was gone."""

    def part(name: str, *inside: str) -> str:
        return f"<m:{name}>{''.join(inside)}</m:{name}>"

    def letters(text: str) -> str:
        return f"<m:r><m:t>{text}</m:t></m:r>"

    power = part("sSup", part("e", part("d", part("e", letters("x+a")))), part("sup", letters("n")))
    sign = part("naryPr", '<m:chr m:val="∑"/>')
    total = part("nary", sign, part("sub", letters("k=0")), part("sup", letters("n")), part("e", letters("k")))
    root = part("rad", part("deg"), part("e", letters("y")))
    formula = f'<m:oMath xmlns:m="m">{power}{letters("=")}{total}{letters("+")}{root}</m:oMath>'
    assert texts(read(docx(p("式", more=formula)), "a.docx")) == ["式(x+a)^n=∑_(k=0)^nk+√(y)"]
