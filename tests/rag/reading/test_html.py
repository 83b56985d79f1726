"""Web pages: what they are about, and how much was left out."""

LINKS = "".join(f"<div><a href='/{i}'>菜单项{i}</a></div>" for i in range(50))
PAGE = f"""<!DOCTYPE html><html><head><title>竹子</title><style>.gone {{display: none}}
@media print {{.text {{display:none}}}}</style>
<script>alert("脚本")</script></head><body class="menu-open"><div class="page with-sidebar"><div>{LINKS}</div>
<div class="cookie-banner">我们使用 cookie，请同意。</div>
<div class="text"><div>竹子可以造纸，<b>也可以</b>盖房子。<br>熊猫吃竹子。</div><p style="display: none">藏着的命令</p>
<p class="gone">也藏着</p><p hidden>还藏着</p><div>竹笋可以吃。</div></div></div>
<footer>版权所有</footer></body></html>"""


def texts(document) -> list[str]:
    return [block.text for block in document.blocks]


def test_menus_scripts_and_hidden_text_are_left_out_and_counted(read):
    document = read(PAGE.encode(), "a.html")
    assert texts(document) == ["竹子", "竹子可以造纸，也可以盖房子。\n熊猫吃竹子。", "竹笋可以吃。"]
    menus = sum(len(f"菜单项{i}") for i in range(50)) + len("我们使用cookie，请同意。") + len("版权所有")
    assert document.notes == (
        "left out: 1 scripts",
        f"left out: {len('藏着的命令也藏着还藏着')} characters of hidden text",
        f"left out: {menus} characters of menus and the like",
    )


def test_a_page_of_links_alone_is_kept(read):
    assert "菜单项49" in texts(read(f"<html><body><ul>{LINKS}</ul></body></html>".encode(), "a.html"))[-1]


def test_the_article_of_a_page_with_one(read):
    page = (
        "<html><body><header><h1>报社</h1></header><main><h2>题</h2><p>正文一句。</p></main><p>别的。</p></body></html>"
    )
    assert texts(read(page.encode(), "a.html")) == ["题", "正文一句。"]


def test_lists_tables_and_code(read):
    page = """<html><body><h1>题</h1><ol start="3"><li>三<ul><li>子</li></ul></li><li>四</li></ol>
    <table><caption>表一</caption><tr><th>种</th><th>高</th></tr>
    <tr><td rowspan="2">毛竹</td><td>20</td></tr><tr><td>25</td></tr><tr><td colspan=2>完</td></tr></table><pre>a
      b</pre><p>图<img src="http://x.example/p.png" alt="熊猫"><ruby>竹<rt>zhú</rt></ruby></p></body></html>"""
    document = read(page.encode(), "a.html")
    assert [(b.kind, b.text) for b in document.blocks] == [
        ("heading", "题"),
        ("text", "3. 三\n  - 子\n4. 四"),
        ("text", "表一"),
        ("table", "种 | 高\n毛竹 | 20\n毛竹 | 25\n完 | "),
        ("text", "a\n      b"),
        ("text", "图熊猫竹"),
    ]


def test_lines_of_code_end_at_breaks(read):
    """deathau/markdownload#199."""
    page = "<html><body><pre>a<br>b<br/>\n  <b>c<br></b>d</pre></body></html>"
    assert texts(read(page.encode(), "a.html")) == ["a\nb\n\n  c\nd"]


def test_encodings_of_pages(read):
    text = "朱镕基在网页里，𠮷野家也在。我们来看看。"
    page = f"<html><head><meta charset='gb2312'></head><body><p>{text}</p></body></html>"
    for encoding in ("gb18030", "utf-8", "utf-16"):
        assert texts(read(page.encode(encoding), "a.html")) == [text]
    latin = "<html><head><meta charset='iso-8859-1'></head><body><p>café crème</p></body></html>"
    assert texts(read(latin.encode("latin-1"), "a.html")) == ["café crème"]


def test_a_page_without_text_says_so(read):
    document = read(b"<html><body><script>x()</script></body></html>", "a.html")
    assert document.blocks == () and "no text was found" in document.notes


def test_what_a_page_says_of_its_encoding_counts(read):
    page = '<html><head><meta charset="Shift_JIS"></head><body><p>これは日本語。</p></body></html>'
    assert read(page.encode("shift_jis"), "a.html").blocks[0].text == "これは日本語。"


def test_deep_nesting_does_not_end_the_reader(read):
    document = read(b"<html><body>" + b"<div>" * 5000 + "深处。".encode() + b"</div>" * 5000, "a.html")
    assert document.kind == "html"


def test_what_is_nested_too_deep_is_told(read):
    """trafilatura#430: deeply nested pages lose parts. Tags that are never closed nest."""
    document = read(f"<body><p>前面</p>{'<font>' * 5000}深处<p>后面</p></body>".encode(), "a.html")
    assert texts(document) == ["前面"] and "nested too deep" in document.notes[0]
    document = read(f"<body><p>前面</p>{'<font>' * 200}深处<p>后面</p></body>".encode(), "a.html")
    assert texts(document) == ["前面", "深处", "后面"] and not document.notes
