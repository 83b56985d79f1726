"""The real page in a real browser: what goes wrong is said in the language of the reader."""

from .browsing import ask, until

READ = "PDF, docx, pptx, xlsx, csv, Markdown, html, text and pictures are read"
SAID = (
    (
        f"报告.doc: this is a file of an old Office format (doc, xls, ppt); save it as docx, xlsx or pptx: {READ}",
        "报告.doc：这是旧版 Office 文件",
    ),
    (
        f"a: b.eml: this is an e-mail (eml); save it as html or PDF: {READ}",
        "a: b.eml：这是电子邮件（eml）",
    ),
    (
        "扫描.pdf: no text found (pages 1, 2 could not be read; pages 3 are blank; it is a picture, and OCR "
        "is not installed; pip install 'mengya[ocr]')",
        "扫描.pdf：没有找到文字（第 1, 2 页读不出；第 3 页空白；这是图片，而没有安装文字识别",
    ),
    (
        "1, 3: hidden sheet; 5 formulas without a stored result; open the file in Excel and save it",
        "第 1, 3 页：隐藏的工作表；5 个公式没有存结果",
    ),
    (
        "left out: deleted passages (tracked changes) (2)",
        "略去：修订中删除的段落（2）",
    ),
    (
        "x.pdf: reading it took longer than 60 seconds after page 3 of 10; split it",
        "x.pdf：读取超过 60 秒（读到第 3/10 页），请拆分",
    ),
    (
        "top_p=2.0 is out of range; choose above 0 and at most 1, such as 0.9; 1 turns it off",
        "Top-p 不能是 2.0，应选大于 0、",
    ),
    (
        "http://h/v1 cannot be reached (refused); start the server, or correct the address",
        "连不上 http://h/v1（refused）",
    ),
    (
        "this answer is not saved yet: the disk with the conversations is full; free space, then try again",
        "这个回答还没有保存：存放",
    ),
    (
        "no backup was made: No space left on device; free space on the disk",
        "没有生成备份：磁盘已满，请腾出磁盘空间",
    ),
    (
        "what nobody has said here",
        "what nobody has said here",
    ),
)
"""In English, and how it begins in Chinese."""


def test_what_the_server_says_is_said_in_chinese(browse):
    tab = browse()
    told = tab.evaluate(
        "async texts => { const { told } = await import('/page/told.js'); return texts.map(told); }", [*SAID]
    )
    for (english, chinese), shown in zip(SAID, told, strict=True):
        assert shown.startswith(chinese), (english, shown)


def notice(tab) -> str:
    until(tab, "document.querySelector('#notice').innerText")
    shown = tab.locator("#notice").inner_text()
    tab.evaluate("document.querySelector('#notice').textContent = ''")
    return shown


def test_what_goes_wrong_is_said_in_both_languages(browse, tmp_path):
    (tmp_path / "坏.pdf").write_bytes(b"%PDF-1.7 nothing")
    (tmp_path / "坏.zip").write_bytes(b"PK\x03\x04 nothing")
    tab = browse()
    ask(tab, "坏")
    tab.set_input_files("#attach-files", [tmp_path / "坏.pdf"])
    tab.wait_for_selector(".chip.failed")
    assert "引擎在回答中途停止了" in tab.locator(".error").inner_text()
    assert "这个 PDF 已损坏或不完整" in tab.locator(".chip.failed").inner_text()
    tab.click("#shelf")
    for _ in range(2):
        tab.fill("#base-name", "制度")
        tab.press("#base-name", "Enter")
        until(tab, "document.querySelector('.base')")
    assert notice(tab) == "已有资料库“制度”，请换一个名字"
    tab.set_input_files("#import-file", tmp_path / "坏.zip")
    assert notice(tab) == "这不是会话备份，请选择从这里导出的文件"
    tab.route("**/run/send", lambda route: route.fulfill(status=502, body="<html>Bad Gateway</html>"))
    tab.fill("#text", "在吗")
    tab.press("#text", "Enter")
    assert notice(tab).endswith("没有正常回答（HTTP 502），请稍后再试。") and tab.input_value("#text") == "在吗"
    tab.unroute("**/run/send")


def test_the_language_changes_what_is_shown_already(browse, tmp_path):
    (tmp_path / "坏.pdf").write_bytes(b"%PDF-1.7 nothing")
    tab = browse()
    ask(tab, "坏")
    tab.set_input_files("#attach-files", [tmp_path / "坏.pdf"])
    tab.wait_for_selector(".chip.failed")
    tab.click("#language")
    until(tab, "document.querySelector('.error').innerText.includes('the engine stopped')")
    until(tab, "document.querySelector('.chip.failed').innerText.includes('this PDF is damaged')")
