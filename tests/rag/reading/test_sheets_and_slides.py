"""Excel and PowerPoint files, made by other libraries."""

import io
import re
import zipfile

import pytest

from mengya.rag.reading.sheet_formats import shown

from .office_maker import archive

openpyxl = pytest.importorskip("openpyxl")
pptx = pytest.importorskip("pptx")
pytest.importorskip("pptx.chart.data")


def saved(made) -> bytes:
    buffer = io.BytesIO()
    made.save(buffer)
    return buffer.getvalue()


def workbook(rows, title="表"):
    book = openpyxl.Workbook()
    book.active.title = title
    for row in rows:
        book.active.append(row)
    return book


@pytest.mark.parametrize(
    "text, number_format, code, from_1904, expected",
    [
        ("45761", 31, None, False, "2025年4月14日"),
        ("44299", 31, None, True, "2025年4月14日"),
        *(
            (f"{45761 + 13.5 / 24}", n, None, False, text)
            for n, text in {27: "2025年4月", 28: "4月14日", 36: "2025年4月"}.items()
        ),
        (f"{45761 + 13.5 / 24}", 32, None, False, "13时30分"),
        (f"{45761 + 13.5 / 24}", 34, None, False, "下午1时30分"),
        ("45761", 14, None, False, "2025-04-14"),
        ("59", 14, None, False, "1900-02-28"),
        ("61", 14, None, False, "1900-03-01"),
        ("1.5", 46, None, False, "36:00:00"),
        ("45761", 0, '[$-804]yyyy"年"m"月"d"日";@', False, "2025年4月14日"),
        ("45761", 0, "[Red]aaaa", False, "星期一"),
        ("45761", 0, None, False, "45761"),
        ("45761", 0, "[Red]0", False, "45761"),
        ("0.30000000000000004", 0, None, False, "0.3"),
        ("1E3", 0, "General", False, "1000"),
        ("0.1234", 10, None, False, "12.34%"),
        ("1234567.891", 0, "[$¥-804]#,##0.00", False, "¥1,234,567.89"),
        ("-1234.5", 0, "#,##0.00_);(#,##0.00)", False, "(1,234.50)"),
        ("-2", 0, "0.0", False, "-2.0"),
        ("0", 0, '0;-0;"-"', False, "-"),
        ("7", 0, "000", False, "007"),
        ("3.5", 0, 'General"元"', False, "3.5元"),
        ("123", 0, "[DBNum1]General", False, "一百二十三"),
        ("1500", 0, '[DBNum2][$-804]G/通用格式"元整"', False, "壹仟伍佰元整"),
        ("12.05", 0, "[DBNum2]General", False, "壹拾贰.零伍"),
        ("45761", 0, '[DBNum1][$-804]yyyy"年"m"月"d"日"', False, "二〇二五年四月十四日"),
        ("99999999999", 14, None, False, "99999999999"),
        ("12345678", 0, '0!.0,"万"', False, "1234.6万"),
        ("1234", 0, '0!.0,"万"', False, "0.1万"),
        ("-5551234", 0, "000-0000", False, "-555-1234"),
        ("13800001111", 0, "000 0000 0000", False, "138 0000 1111"),
        ("0.5", 12, None, False, "1/2"),
        ("-1.25", 13, None, False, "-1 1/4"),
        ("3", 0, "# ?/?", False, "3"),
        ("1.5", 0, "?/?", False, "3/2"),
        ("0.12", 0, "#\\ ??/100", False, "12/100"),
        ("0.5", 0, '# ?/?"英寸"', False, "1/2英寸"),
        ("2", 0, '[=1]"男";[=2]"女"', False, "女"),
        ("500", 0, '[>=10000]0!.0,"万";0', False, "500"),
        ("12345", 0, '[>=10000]0!.0,"万";0', False, "1.2万"),
        ("7", 0, '[>=100]"高";"负"0;0', False, "7"),
        ("2.5", 0, "0", False, "3"),
        ("12.5", 0, "0.00元/㎡", False, "12.50元/㎡"),
        ("1.005", 0, "0.00", False, "1.01"),
        ("0", 0, '¥#,##0.00;-¥#,##0.00;¥"-"??', False, "¥-"),
        ("1e99", 0, "0.00", False, "1" + "0" * 99 + ".00"),
        *((text, 0, form, False, text) for text in ("inf", "nan", "1e300") for form in ("0.00", "# ?/?", "0%")),
        ("1", 0, "0." + "0" * 600, False, "1"),
        ("1", 0, "0" + "%" * 200, False, "1"),
    ],
)
def test_numbers_as_excel_shows_them(text, number_format, code, from_1904, expected):
    assert shown(text, number_format, code, from_1904) == expected


def test_dates_merged_cells_and_hidden_sheets(read):
    book = workbook([["地区", "日期"], ["华东", 45761], [None, 45762], [None, 45763], ["华北", 1]])
    book.active.merge_cells("A2:A4")
    for row in range(2, 6):
        book.active.cell(row, 2).number_format = 'yyyy"年"m"月"d"日"'
    book.create_sheet("备用").sheet_state = "hidden"
    book["备用"]["B7"] = "藏着的数"
    book.create_sheet("空表")
    document = read(saved(book), "a.xlsx")
    assert document.blocks[1].rows == (
        ("地区", "日期"),
        *(("华东", f"2025年4月{day}日") for day in (14, 15, 16)),
        ("华北", "1900年1月1日"),
    )
    assert [(p.number, p.label, p.state, p.note) for p in document.pages] == [
        (1, "表", "text", ""),
        (2, "备用", "text", "hidden sheet"),
        (3, "空表", "blank", ""),
    ]
    assert [(b.kind, b.text, b.page) for b in document.blocks[2:]] == [("heading", "备用", 2), ("table", "藏着的数", 2)]


def test_the_built_in_formats_of_chinese_excel_and_the_other_epoch(read):
    book = workbook([["日期"], [45761 - 1462]])
    book.epoch = openpyxl.utils.datetime.CALENDAR_MAC_1904
    book.active["A2"].number_format = "0.000"
    content = saved(book)
    styles = part(content, "xl/styles.xml")
    own = re.search('numFmtId="([0-9]+)" formatCode', styles)[1]
    styles = re.sub("<numFmts.*</numFmts>", "", styles).replace(f'numFmtId="{own}"', 'numFmtId="31"')
    content = with_part(content, "xl/styles.xml", styles)
    assert read(content, "a.xlsx").blocks[1].rows == (("日期",), ("2025年4月14日",))


def part(content: bytes, name: str) -> str:
    return zipfile.ZipFile(io.BytesIO(content)).read(name).decode()


def with_part(content: bytes, name: str, text: str) -> bytes:
    old = zipfile.ZipFile(io.BytesIO(content))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for one in old.namelist():
            new.writestr(one, text if one == name else old.read(one))
    return buffer.getvalue()


def with_relation(content: bytes, relations: str, kind: str, name: str, text: str) -> bytes:
    """With one more part, which a part names by a relation of this kind."""
    kind = f"http://schemas.microsoft.com/office/{kind}"
    more = f'<Relationship Id="more" Type="{kind}" Target="/{name}"/></Relationships>'
    named = part(content, relations).replace("</Relationships>", more)
    buffer = io.BytesIO(with_part(content, relations, named))
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(name, text)
    return buffer.getvalue()


def test_formulas_need_a_stored_result(read):
    content = saved(workbook([["和"], ["=1+2"], ["=2+3"]]))
    sheet = part(content, "xl/worksheets/sheet1.xml")
    sheet = re.sub("<f>1\\+2</f><v ?/?>(</v>)?", "<f>1+2</f><v>3</v>", sheet)
    content = with_part(content, "xl/worksheets/sheet1.xml", sheet)
    document = read(content, "a.xlsx")
    assert document.blocks[1].rows == (("和",), ("3",))
    assert document.pages[0].note.startswith("1 formulas without a stored result")


def test_shared_strings_with_reading_aids_formats_and_escapes(read):
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    relations = "<Relationships>{}</Relationships>".format
    relation = f'<Relationship Id="{{0}}" Type="{kind}/{{1}}" Target="{{2}}"/>'.format
    run = "<r><rPr><b/></rPr><t>{}</t></r>".format
    content = archive(
        {
            "[Content_Types].xml": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml",
            "_rels/.rels": relations(relation("book", "officeDocument", "xl/workbook.xml")),
            "xl/workbook.xml": f'<workbook xmlns:r="{kind}"><sheets><sheet name="表" r:id="s"/></sheets></workbook>',
            "xl/_rels/workbook.xml.rels": relations(
                relation("s", "worksheet", "s.xml") + relation("t", "sharedStrings", "t.xml")
            ),
            "xl/s.xml": '<worksheet><sheetData><row><c t="s"><v>0</v></c></row></sheetData></worksheet>',
            "xl/t.xml": f"<sst><si>{run('东')}{run('京_x000D_')}<rPh sb='0' eb='2'><t>トウ</t></rPh></si></sst>",
        }
    )
    assert read(content, "a.xlsx").blocks[1].text == "东京"


def test_hidden_rows_comments_and_many_merged_cells(read):
    book = workbook([["名", "价"], *(["竹", i] for i in range(600))])
    sheet = book.active
    sheet.row_dimensions[3].hidden = True
    sheet["B2"].comment = openpyxl.comments.Comment("含税", "甲")
    for row in range(4, 600, 2):
        sheet.merge_cells(f"A{row}:A{row + 1}")
    for row in range(602, 1200):
        sheet.cell(row, 1).number_format = "0.00"
    document = read(saved(book), "a.xlsx")
    rows = document.blocks[1].rows
    assert len(rows) == 601 and rows[1] == ("竹", "0〔注：含税〕") and rows[4] == ("竹", "3")
    assert document.pages[0].note == "hidden rows or columns were read, too"
    book = workbook([["名", "价"]])
    book.active.column_dimensions["B"].hidden = True
    assert read(saved(book), "a.xlsx").pages[0].note


def test_threads_of_comments_are_read_without_the_notice(read):
    """A thread stands in the file twice: whole, and in an old form under a notice, which blank lines break."""
    notice = "[Threaded comment]\n\nYour version of Excel\n\nComment:\n    旧一\n\n旧二"
    book = workbook([["名", "价"]])
    for cell in ("A1", "B1"):
        book.active[cell].comment = openpyxl.comments.Comment(notice if cell == "B1" else "平常", "甲")
    one = '<threadedComment ref="B1"><text>{}</text></threadedComment>'.format
    threads = f"<ThreadedComments>{one('含税吗？')}{one('含。')}</ThreadedComments>"
    relations, kind = "xl/worksheets/_rels/sheet1.xml.rels", "2017/10/relationships/threadedComment"
    content = with_relation(saved(book), relations, kind, "xl/threads.xml", threads)
    assert read(content, "a.xlsx").blocks[1].text == "名〔注：平常〕 | 价〔注：含税吗？；含。〕"


def test_a_cell_far_away_and_a_title_above_the_table(read):
    book = workbook([["二〇二四年报表"], ["名", "价"], ["竹", 3]])
    book.active["XFD1048576"] = "远"
    document = read(saved(book), "a.xlsx")
    assert [b.text for b in document.blocks] == ["表", "二〇二四年报表", "名 | 价 | \n竹 | 3 | \n |  | 远"]


def test_several_tables_of_a_sheet_keep_their_headers(read):
    """write-excel-file#8, typed-xlsx#14: as people lay them out; and ragflow PR#19509: each with its own header."""
    rows = [["型号", "价格"], ["A1", 5], ["A2", 6], [], ["联系人"], ["姓名", "电话"], ["张三", "139"], ["李四", "138"]]
    rows += [
        [],
        ["地区", "一月", "二月"],
        ["东", 1, 2],
        [],
        ["下半年"],
        ["西", 3, 4],
        [],
        ["合计", 4, 6],
        [],
        ["注：万元"],
    ]
    assert [(b.kind, b.text) for b in read(saved(workbook(rows)), "a.xlsx").blocks] == [
        ("heading", "表"),
        ("table", "型号 | 价格\nA1 | 5\nA2 | 6"),
        ("text", "联系人"),
        ("table", "姓名 | 电话\n张三 | 139\n李四 | 138"),
        ("table", "地区 | 一月 | 二月\n东 | 1 | 2"),
        ("text", "下半年"),
        ("table", "地区 | 一月 | 二月\n西 | 3 | 4\n合计 | 4 | 6"),
        ("text", "注：万元"),
    ]


def test_shapes_are_read_as_they_are_seen_and_charts_as_tables(read):
    made = pptx.Presentation()
    slide = made.slides.add_slide(made.slide_layouts[3])  # a title and two columns
    for shapes, places in (
        (slide.shapes, "60 右下|51 左下"),
        (slide.shapes.add_group_shape().shapes, "59 组下|58 组上"),
    ):
        for place in places.split("|"):
            left = 10**6 * (1 + 4 * ("右" in place))
            shapes.add_textbox(left, int(place[:2]) * 10**5, 9, 9).text_frame.text = place[3:]
    slide.placeholders[2].text, slide.placeholders[1].text = "右栏", "左栏"
    slide.shapes.title.text = "标题"
    data = pptx.chart.data.CategoryChartData()
    data.categories = ["一季", "二季"]
    data.add_series("收入", (1.5, 2))
    data.add_series("支出", (3, None))
    kind = pptx.enum.chart.XL_CHART_TYPE.COLUMN_CLUSTERED
    slide.shapes.add_chart(kind, 0, 7 * 10**6, 9, 9, data).chart.has_title = False
    document = read(saved(made), "a.pptx")
    assert [b.text for b in document.blocks] == [
        *("标题", "左栏", "右栏", "左下", "组上", "组下", "右下"),
        " | 收入 | 支出\n一季 | 1.5 | 3\n二季 | 2 | ",
    ]


def test_slides(read):
    made = pptx.Presentation()
    slide = made.slides.add_slide(made.slide_layouts[1])
    slide.placeholders[1].text = "收入增长\n成本下降"
    slide.shapes.title.text = "季度总结"
    table = slide.shapes.add_table(2, 2, 0, 7 * 10**6, 9999, 9999).table
    for i, text in enumerate("甲乙丙丁"):
        table.cell(i // 2, i % 2).text = text
    group = slide.shapes.add_group_shape()
    group.shapes.add_textbox(0, 8 * 10**6, 9, 9).text_frame.text = "组里的话"
    slide.notes_slide.notes_text_frame.text = "讲稿"
    made.slides.add_slide(made.slide_layouts[6])
    picture = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (9, 9)).save(picture, "png")
    made.slides.add_slide(made.slide_layouts[6]).shapes.add_picture(picture, 0, 0)
    document = read(saved(made), "a.pptx")
    assert [(b.kind, b.text, b.page) for b in document.blocks] == [
        ("heading", "季度总结", 1),
        ("text", "收入增长\n成本下降", 1),
        ("table", "甲 | 乙\n丙 | 丁", 1),
        ("text", "组里的话", 1),
        ("text", "讲稿", 1),
    ]
    assert [page.state for page in document.pages] == ["text", "blank", "unread"]


def test_comments_on_slides_and_their_replies_are_counted(read):
    made = pptx.Presentation()
    made.slides.add_slide(made.slide_layouts[5]).shapes.title.text = "题"
    relations, kind = "ppt/slides/_rels/slide1.xml.rels", "2018/10/relationships/comments"
    comments = "<cmLst><cm><replyLst><reply/></replyLst></cm></cmLst>"
    content = with_relation(saved(made), relations, kind, "ppt/comments.xml", comments)
    assert read(content, "a.pptx").notes == ("left out: comments (2)",)
