"""The real page in a real browser: files, knowledge bases, pictures."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from ...rag.reading.office_maker import docx, p
from ...rag.reading.pdf_maker import Page as PdfPage
from ...rag.reading.pdf_maker import pdf
from .browsing import ask, chosen_base, last, until, whole

PAGES = [
    ["员工手册", "第一章 总则", "本手册适用于青禾公司的全体员工。"],
    ["第二章 休假", "员工每年休假二十八天，不含公众假日。", "休假须提前两周申请，由部门负责人批准。"],
    ["第三章 报销", "差旅费凭票据报销，餐费每天最高一百二十元。"],
]


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("documents")
    pages = [PdfPage([(60, 720 - 40 * n, 16, line) for n, line in enumerate(lines)]) for lines in PAGES]
    (folder / "员工手册.pdf").write_bytes(pdf(pages))
    (folder / "食堂<b>.docx").write_bytes(docx(p("食堂") + p("食堂每天中午十一点半开门，晚上七点关门。")))
    return sorted(folder.iterdir())


def test_a_pdf_and_a_docx_answer_with_citations(browse, documents, pictures):
    tab = browse()
    tab.set_input_files("#attach-files", documents)
    tab.wait_for_selector(".chip")
    until(tab, "document.querySelectorAll('.chip:not(.busy)').length === 2")
    assert "3 页" in tab.locator(".chip").filter(has_text="员工手册").inner_text()
    ask(tab, "员工每年休假多少天？")
    assert last(tab).startswith("每年二十八天")
    assert tab.locator(".sources .source").inner_text() == "[1] 员工手册.pdf 第 2 页"
    tab.click(".body .cite")
    tab.wait_for_selector("#source mark")
    assert "二十八天" in "".join(tab.locator("#source mark").all_inner_texts())
    assert (
        tab.locator("#source-name").inner_text() == "员工手册.pdf"
        and "第 2 页" in tab.locator("#source-place").inner_text()
    )
    assert (
        "提前两周" in tab.locator("#source-text").inner_text()
        and "报销" not in tab.locator("#source-text").inner_text()
    )
    pictures(tab, "citation")
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#source", state="hidden")
    ask(tab, "火星上有几座火山？")
    assert "资料中没有找到答案" in tab.locator(".state").last.inner_text()
    tab.click('.chip [aria-label="移除 员工手册.pdf"]')
    until(tab, "document.querySelectorAll('.chip').length === 1")
    tab.reload()
    whole(tab)
    tab.locator(".body .cite").first.click()
    tab.wait_for_selector("#source mark")
    assert "已移除" in tab.locator("#source-place").inner_text()


def test_a_knowledge_base(browse, documents, pictures):
    tab = browse()
    tab.click("#shelf")
    tab.fill("#base-name", "公司 <i>制度</i>")
    tab.press("#base-name", "Enter")
    tab.click(".base summary")
    with tab.expect_file_chooser() as chooser:
        tab.click(".base .plain-button")
    chooser.value.set_files(documents)
    until(tab, "document.querySelectorAll('.base .files li:not(.busy):not(.quiet)').length === 2")
    tab.check('.base input[type="checkbox"]')
    tab.wait_for_selector(".chip.base")
    pictures(tab, "documents")
    ask(tab, "员工每年休假多少天？")
    assert tab.locator(".sources .source").count() == 1
    tab.click("#new")
    ask(tab, "员工每年休假多少天？")
    assert last(tab).startswith("回答：")
    tab.click('[aria-label^="移除 员工手册"]')
    until(tab, "document.querySelectorAll('.base .files li').length === 1")
    for _ in range(2):
        tab.click('[aria-label^="删除资料库"]')
    until(tab, "!document.querySelector('.base')")


def test_a_base_that_is_gone_is_said_below_the_answer(browse):
    tab = browse()
    chosen_base(tab, "制度")
    ask(tab, "甲")
    assert "没有使用这些资料库" in tab.locator(".state").inner_text() and "制度" in tab.locator(".state").inner_text()


def test_a_picture_for_a_model_that_sees(browse, page_server, tmp_path):
    Image.new("RGB", (300, 200), "#7fd6a2").save(tmp_path / "叶.png")
    tab = browse()
    tab.select_option("#model", "sprout-large")
    tab.set_input_files("#attach-files", tmp_path / "叶.png")
    tab.wait_for_selector(".chip img")
    question = [{"type": "text", "text": "这是什么？"}]
    page_server.site.models["sprout-large"].answer = lambda request, choice: ["一片叶子"]
    ask(tab, "这是什么？")
    request = page_server.site.models["sprout-large"].requests[-1]
    assert request.prompt.messages[-1]["content"][:1] == question and len(request.prompt.messages[-1]["content"]) == 2
    until(tab, "document.querySelector('.pictures img').naturalWidth === 300")
    assert tab.locator(".chip").count() == 0 and last(tab) == "一片叶子"


def test_pictures_are_pasted(browse, page_server):
    """ChatGPT-Next-Web-LangChain#106. All that are pasted have one name."""
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "#7fd6a2").save(buffer, "PNG")
    tab = browse()
    tab.select_option("#model", "sprout-large")
    paste = """data => { const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), all = new DataTransfer();
        all.items.add(new File([bytes], "image.png", {type: "image/png"}));
        const event = new ClipboardEvent("paste", {clipboardData: all, bubbles: true, cancelable: true});
        document.querySelector("#text").dispatchEvent(event); }"""
    tab.evaluate(paste, base64.b64encode(buffer.getvalue()).decode())
    tab.wait_for_selector(".chip img")
    name = tab.locator(".chip .name").inner_text()
    assert name.startswith("image ") and name.endswith(".png")
    page_server.site.models["sprout-large"].answer = lambda request, choice: ["一片叶子"]
    tab.press("#text", "Enter")  # it may stand alone
    whole(tab)
    assert tab.locator(".pictures img").count() == 1 and tab.locator(".chip").count() == 0
    tab.click("#new")
    assert tab.locator(".chip").count() == 0


def test_a_file_too_large_is_refused(browse, tmp_path):
    (tmp_path / "大.txt").write_bytes(b"0" * (20 << 20))
    tab = browse()
    tab.set_input_files("#attach-files", tmp_path / "大.txt")
    until(tab, "document.querySelector('#notice').innerText.includes('大.txt 超过 20 MB')")
    assert tab.locator(".chip").count() == 0
    (tmp_path / "坏.pdf").write_bytes(b"%PDF-1.7 nothing")
    tab.set_input_files("#attach-files", tmp_path / "坏.pdf")
    tab.wait_for_selector(".chip.failed")
    tab.click(".chip.failed button")
    until(tab, "!document.querySelector('.chip')")
    ask(tab, "还在吗")


def test_a_page_that_cannot_be_read_is_counted(browse, page_server, monkeypatch):
    """The whole list of files was missing: two words of the page had one name."""
    file = {"name": "扫描.pdf", "passages": 1, "pages": 3, "notes": [], "ocr": 1, "blank": 1, "unread": 1}
    monkeypatch.setattr(page_server.library, "files", lambda owner, place: {"files": [file], "jobs": []})
    tab = browse()
    ask(tab, "甲")
    tab.wait_for_selector(".chip")
    assert tab.locator(".chip .quiet").inner_text() == "3 页 · 1 页由图片识别 · 1 页空白 · 1 页读不出"


def test_a_question_waits_for_its_files(browse, page_server, documents):
    """langgenius/webapp-conversation PR 208, open-webui#26010: it went without what was still on its way."""
    tab = browse()
    held = []
    tab.route("**/files?*", lambda route: held.append(route))
    tab.set_input_files("#attach-files", documents[0])
    tab.wait_for_selector(".chip.busy")
    assert "正在上传" in tab.locator(".chip").inner_text()
    tab.fill("#text", "员工每年休假多少天？")
    tab.press("#text", "Enter")
    tab.wait_for_timeout(300)
    assert tab.locator(".message").count() == 0
    held[0].continue_()
    whole(tab)
    assert last(tab).startswith("每年二十八天")


def test_an_upload_is_cancelled(browse, documents):
    tab = browse()
    tab.route("**/files?*", lambda route: None)
    tab.set_input_files("#attach-files", documents[0])
    tab.click('.chip.busy [aria-label^="取消"]')
    until(tab, "!document.querySelector('.chip')")
    assert tab.locator("#notice").inner_text() == ""
    ask(tab, "还在吗")


@pytest.fixture
def folder(tmp_path):
    """With more files than are told at a time, some of them in its depths."""
    top = tmp_path / "资料夹"
    for number in range(101):
        path = top / f"第{number // 40}部分" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"食堂第{number}天供应面条。", encoding="utf-8")
    (top / "深" / "更深").mkdir(parents=True)
    (top / "深" / "更深" / "0.txt").write_text(
        "员工每年休假二十八天。", encoding="utf-8"
    )  # of a name that is there already
    (top / ".git").mkdir()
    (top / ".git" / "config").write_text("x")
    (top / "安装.exe").write_bytes(b"MZ\x90")
    return top


def drop(tab, *paths):
    devtools = tab.context.new_cdp_session(tab)
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 700, "y": 300, "data": data})


def test_a_folder_is_read_to_its_depths(browse, page_server, folder, tmp_path, pictures):
    """mattermost#10064, anything-llm#2188, chatbox#2675: nothing was said, or only what lies on top was added."""
    (tmp_path / "一.txt").write_text("食堂中午供应面条。", encoding="utf-8")
    tab = browse()
    drop(tab, folder, tmp_path / "一.txt")
    until(tab, "document.querySelector('#notice').innerText.includes('安装.exe')")
    until(tab, "document.querySelector('#chips').innerText.includes('还有')")
    pictures(tab, "folder-coming")
    assert tab.locator("#title").inner_text() == "资料夹"
    until(tab, "document.querySelector('#chips').innerText.includes('全部 103 个文件')")
    until(tab, "!document.querySelector('.chip.busy')")
    tab.click("#chips button:has-text('全部')")
    until(tab, "document.querySelectorAll('#own-files li').length === 103")
    names = tab.locator("#own-files .name").all_inner_texts()
    assert {"资料夹/第0部分/0.txt", "资料夹/深/更深/0.txt", "资料夹/第2部分/100.txt", "一.txt"} <= {*names}
    pictures(tab, "folder")
    ask(tab, "员工每年休假多少天？")
    assert tab.locator(".sources .source").inner_text() == "[1] 资料夹/深/更深/0.txt"


def test_a_folder_is_chosen(browse, folder):
    """dify PR 17026, anything-llm#3320."""
    tab = browse()
    chosen_base(tab, "制度")
    tab.click(".base summary")
    with tab.expect_file_chooser() as chooser:
        tab.click(".base button:has-text('添加文件夹')")
    chooser.value.set_files(folder / "深")
    until(tab, "document.querySelectorAll('.base .files li:not(.busy):not(.quiet)').length === 1")
    assert tab.locator(".base .files .name").inner_text() == "深/更深/0.txt"


def test_what_is_left_out_of_a_folder_does_not_count(browse, tmp_path):
    """A project's .git and caches hold more files than are added at once, and come before its documents."""
    for name, count in ((".git", 2100), ("b", 2100)):
        (tmp_path / "项目" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "项目" / name / f"{number}{'.pyc' if name == 'b' else ''}").touch()
    (tmp_path / "项目" / "笔记.txt").write_text("食堂中午供应面条。", encoding="utf-8")
    tab = browse()
    drop(tab, tmp_path / "项目")
    until(tab, "document.querySelector('.chip:not(.busy)')?.innerText.includes('笔记.txt')")


def test_an_empty_folder_is_said(browse, tmp_path):
    (tmp_path / "空").mkdir()
    tab = browse()
    drop(tab, tmp_path / "空")
    until(tab, "document.querySelector('#notice').innerText === '里面没有可以添加的文件。'")
    assert tab.locator(".chip").count() == 0


def test_pictures_that_a_model_does_not_see_are_said(browse, tmp_path):
    Image.new("RGB", (30, 20), "#7fd6a2").save(tmp_path / "叶.png")
    tab = browse()
    tab.select_option("#model", "sprout-large")
    tab.set_input_files("#attach-files", tmp_path / "叶.png")
    tab.wait_for_selector(".chip img")
    tab.select_option("#model", "sprout")
    ask(tab, "这是什么？")
    assert "这个模型看不了图片，没有使用：叶.png" in tab.locator(".state").inner_text()
