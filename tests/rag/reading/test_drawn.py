"""What lies on slides and sheets beside their text: pictures, charts, numbers and formulas that PowerPoint makes."""

import io
import zipfile

import pytest

A = "http://schemas.openxmlformats.org/drawingml/2006/main"


def texts(document) -> list[str]:
    return [block.text for block in document.blocks]


def saved(file) -> bytes:
    buffer = io.BytesIO()
    file.save(buffer)
    return buffer.getvalue()


def picture() -> io.BytesIO:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (400, 300), "red").save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def test_automatic_numbers_of_slides(read):
    """office2pdf PR#127."""
    deck = pytest.importorskip("pptx").Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    told = [
        ("打开", 0, "arabicPeriod", ""), ("甲", 1, "alphaLcParenR", ""), ("乙", 1, "alphaLcParenR", ""),
        ("保存", 0, "arabicPeriod", ""), ("丙", 1, "alphaLcParenR", ""), ("说明", 0, "", ""),
        ("其一", 0, "ea1ChsPeriod", ""), ("其三", 0, "circleNumDbPlain", "3"), ("其四", 0, "circleNumDbPlain", "3"),
    ]  # fmt: skip
    frame = slide.placeholders[1].text_frame
    for text, level, form, start in told:
        paragraph = frame.add_paragraph()
        paragraph.text, paragraph.level = text, level
        if form:
            number = paragraph._p.get_or_add_pPr().makeelement(f"{{{A}}}buAutoNum", {"type": form})
            number.attrib.update({"startAt": start} if start else {})
            paragraph._p.get_or_add_pPr().append(number)
    assert texts(read(saved(deck), "a.pptx")) == [
        "1. 打开\na) 甲\nb) 乙\n2. 保存\na) 丙\n说明\n一. 其一\n③ 其三\n④ 其四"
    ]


def test_raised_crossed_out_and_computed_text_of_slides(read):
    deck = pytest.importorskip("pptx").Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    line = slide.shapes.add_textbox(0, 0, 5_000_000, 500_000).text_frame.paragraphs[0]
    for text, name, value in (("10", "", ""), ("5", "baseline", "30000"), ("元", "strike", "sngStrike")):
        one = line.add_run()
        one.text = text
        if name:
            one._r.get_or_add_rPr().set(name, value)
    data = saved(deck)
    formula = (
        '<mc:AlternateContent xmlns:mc="mc"><mc:Choice><m xmlns="m"><oMath><d><e><r><t>a+b</t></r></e></d>'
        "<sSup><e><r><t>x</t></r></e><sup><r><t>2</t></r></sup></sSup><rad><deg/><e><r><t>y</t></r></e></rad></oMath></m>"
        "</mc:Choice><mc:Fallback><a:r><a:t>公式</a:t></a:r></mc:Fallback></mc:AlternateContent></a:p>"
    )
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, part.replace(b"</a:p>", formula.encode()) if name.endswith("slide1.xml") else part)
    assert texts(read(changed.getvalue(), "a.pptx")) == ["10⁵〔划去：元〕(a+b)x^2√(y)"]


def test_a_foot_of_slides_is_read_once(read):
    """As those of Word and PDF files; numbers and dates are not."""
    deck = pytest.importorskip("pptx").Presentation()
    for number in range(2):
        slide = deck.slides.add_slide(deck.slide_layouts[5])
        slide.shapes.title.text_frame.text = f"第{number}张"
        for kind in ("ftr", "sldNum"):
            box = slide.shapes.add_textbox(0, 6_000_000, 3_000_000, 500_000)
            box.text_frame.text = "内部资料"
            mark = box._element.nvSpPr.nvPr
            mark.append(mark.makeelement(mark.tag.replace("nvPr", "ph"), {"type": kind}))
    assert texts(read(saved(deck), "a.pptx")) == ["第0张", "内部资料", "第1张"]


def test_pictures_of_slides_are_told(read):
    deck = pytest.importorskip("pptx").Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text_frame.text = "架构"
    shape = slide.shapes.add_picture(picture(), 0, 2_000_000, 3_000_000, 2_000_000)
    shape._element.nvPicPr.cNvPr.set("descr", "系统架构图")
    document = read(saved(deck), "a.pptx")
    assert texts(document) == ["架构", "〔图：系统架构图〕"]
    assert document.notes == ("left out: pictures, whose text is not read; save it as PDF to have it read by OCR (1)",)


def test_a_sheet_of_pictures_is_not_blank(read):
    """ragflow#11405, #2621, MaxKB#4020: pictures in sheets are lost without a word; and titles of charts."""
    openpyxl = pytest.importorskip("openpyxl")
    from openpyxl.chart import BarChart, Reference
    from openpyxl.drawing.image import Image

    book = openpyxl.Workbook()
    book.active.add_image(Image(picture()), "A1")
    sheet = book.create_sheet("图")
    for row in (["月", "量"], ["一月", 3], ["二月", 5]):
        sheet.append(row)
    chart = BarChart()
    chart.title = "销量走势"
    chart.add_data(Reference(sheet, min_col=2, min_row=1, max_row=3), titles_from_data=True)
    sheet.add_chart(chart, "D1")
    document = read(saved(book), "a.xlsx")
    assert texts(document)[-3:] == ["图", "月 | 量\n一月 | 3\n二月 | 5", "销量走势"]
    assert document.pages[0].note.startswith("pictures, whose text is not read") and not document.pages[1].note


def test_newer_charts_are_tables(read):
    """Waterfall, funnel, treemap and the like, which lie in parts of another kind; labels may have levels."""
    from .office_maker import docx_drawing

    def points(*texts: str) -> str:
        return "".join(f'<cx:pt idx="{i}">{text}</cx:pt>' for i, text in enumerate(texts))

    content = (
        '<cx:chartSpace xmlns:cx="cx" xmlns:a="a"><cx:chartData><cx:data id="0"><cx:strDim type="cat">'
        f"<cx:lvl>{points('上海', '北京')}</cx:lvl><cx:lvl>{points('东', '北')}</cx:lvl></cx:strDim>"
        f'<cx:numDim type="size"><cx:lvl>{points("3", "0.30000000000000004")}</cx:lvl></cx:numDim>'
        "</cx:data></cx:chartData>"
        "<cx:chart><cx:title><cx:tx><cx:rich><a:p><a:r><a:t>各地</a:t></a:r></a:p></cx:rich></cx:tx></cx:title>"
        '<cx:plotArea><cx:plotAreaRegion><cx:series layoutId="treemap"><cx:tx><cx:txData><cx:v>销量</cx:v></cx:txData>'
        '</cx:tx><cx:dataId val="0"/></cx:series></cx:plotAreaRegion></cx:plotArea></cx:chart></cx:chartSpace>'
    )
    data = docx_drawing('<a:graphic><c:chart r:id="rId9"/></a:graphic>', "chartEx", "chartEx1.xml", content)
    assert texts(read(data, "a.docx")) == ["前", "各地", " | 销量\n东 / 上海 | 3\n北 / 北京 | 0.3", "后"]


def test_raised_and_crossed_out_letters_of_cells(read):
    openpyxl = pytest.importorskip("openpyxl")
    from openpyxl.cell.rich_text import CellRichText, TextBlock
    from openpyxl.cell.text import InlineFont

    book = openpyxl.Workbook()
    raised, struck = InlineFont(vertAlign="superscript"), InlineFont(strike=True)
    book.active["A1"] = CellRichText("10", TextBlock(raised, "5"), " m ", TextBlock(struck, "旧"))
    assert texts(read(saved(book), "a.xlsx"))[-1] == "10⁵ m 〔划去：旧〕"
