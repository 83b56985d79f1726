"""The real page in a real browser: what a person does, with the keyboard, on a phone, in both languages.

`pytest tests/serve/web/test_browser.py --screenshots docs/images` also writes the pictures that the documents show.
"""

import re
from pathlib import Path

import pytest
from PIL import Image

from ...rag.reading.office_maker import docx, p
from ...rag.reading.pdf_maker import Page as PdfPage
from ...rag.reading.pdf_maker import pdf
from .browsing import ask, last, until, whole


def test_an_answer_is_drawn(browse, pictures):
    tab = browse()
    ask(tab, "讲讲光合作用")
    body = tab.locator(".message.assistant .body")
    assert body.locator("math").count() == 2 and body.locator("strong").inner_text() == "要点："
    assert body.locator("pre .k").count() and body.locator("table").count() == 1
    thought = tab.locator(".thought")
    assert thought.get_attribute("open") is None and not thought.locator("div").is_visible()
    thought.locator("summary").click()
    assert "先写反应式" in thought.locator("div").inner_text()
    thought.locator("summary").click()
    assert "tokens" not in tab.locator(".meta").inner_text() and "词元/秒" in tab.locator(".meta").inner_text()
    assert tab.locator("#title").inner_text() == "讲讲光合作用"
    pictures(tab, "chat")


def test_texts_find_their_direction(browse):
    """ollama PR 16954: Arabic and Hebrew were set from left to right; code never is from right to left."""
    tab = browse()
    ask(tab, "مرحبا!")

    def direction(what: str) -> str:
        return tab.locator(what).first.evaluate("e => getComputedStyle(e).direction")

    for what in (".words", ".block", "#title", "#conversations [aria-current] .name"):
        assert direction(what) == "rtl", what
    assert direction(".code pre") == "ltr"
    ask(tab, "第一行\n\n第二行")
    assert direction(".message:last-child .block") == "ltr"


def test_stop_keeps_what_was_written(browse):
    tab = browse()
    tab.fill("#text", "慢慢写")
    tab.press("#text", "Enter")
    until(tab, "document.querySelector('.message.assistant .body')?.innerText.length > 3")
    assert tab.locator("#send").get_attribute("aria-label") == "停止"
    tab.locator("#send").click()
    whole(tab)
    assert "已停止" in tab.locator(".state").inner_text() and "字字字" in last(tab)
    text = last(tab)
    tab.wait_for_timeout(300)
    tab.reload()
    whole(tab)
    assert last(tab) == text
    tab.fill("#text", "再慢慢写")
    tab.press("#text", "Enter")
    until(tab, "document.querySelectorAll('.message.assistant').length > 1")
    tab.press("#text", "Escape")
    until(tab, "document.querySelectorAll('.again').length > 1")


def test_a_connection_that_breaks_doubles_nothing(browse):
    tab = browse()
    tab.fill("#text", "慢，断线")
    tab.press("#text", "Enter")
    until(tab, "document.querySelector('.message.assistant .body')?.innerText.length > 3")
    tab.context.set_offline(True)
    tab.wait_for_timeout(1000)
    tab.context.set_offline(False)
    length = len(last(tab))
    until(tab, f"document.querySelector('.message.assistant .body').innerText.length > {length + 10}")
    tab.press("#text", "Escape")
    whole(tab)
    text = last(tab)
    tab.reload()
    whole(tab)
    assert last(tab) == text and set(text) == {"字"}


def test_again_and_edit_keep_the_earlier_branch(browse):
    tab = browse()
    ask(tab, "一")
    tab.click(".again")
    tab.wait_for_selector(".message.assistant .versions")
    whole(tab)
    assert tab.locator(".message.assistant .versions").inner_text() == "2/2"
    tab.click('.message.user [aria-label="编辑"]')
    tab.fill(".edit", "二")
    tab.press(".edit", "Enter")
    tab.wait_for_selector(".message.user .versions")
    whole(tab)
    assert last(tab) == "回答：二"
    tab.click('.message.user [aria-label="上一个版本"]')
    until(tab, "document.querySelector('.message.user .words').innerText === '一'")
    assert last(tab) == "回答：一" and tab.locator(".message.assistant .versions").inner_text() == "2/2"
    tab.click('.message.assistant [aria-label="上一个版本"]')
    until(tab, "document.querySelector('.message.assistant .versions').innerText === '1/2'")


def test_the_history_is_found_after_a_reload(browse):
    tab = browse()
    ask(tab, "合同违约金")
    tab.click("#new")
    ask(tab, "别的事")
    tab.reload()
    whole(tab)
    assert last(tab) == "回答：别的事"
    until(tab, "document.querySelectorAll('.conversation').length === 2")
    tab.fill("#search", "违约")
    until(tab, "document.querySelectorAll('.conversation').length === 1")
    tab.click(".conversation")
    until(tab, "document.querySelector('.words').innerText === '合同违约金'")
    tab.fill("#search", "没有这个")
    tab.wait_for_selector(".none")


def test_what_is_not_sent_stays_with_its_conversation(browse):
    """deltachat-desktop 582: it was sent to somebody else; nearai/ironclaw 4724: it was lost."""
    tab = browse()
    ask(tab, "甲")
    tab.fill("#text", "给甲的话")
    tab.locator("#new").click()
    assert tab.input_value("#text") == ""
    tab.fill("#text", "新的话")
    tab.locator(".conversation").first.click()
    until(tab, "document.querySelector('#text').value === '给甲的话'")
    tab.reload()
    whole(tab)
    until(tab, "document.querySelector('#text').value === '给甲的话'")
    tab.press("#text", "Enter")
    until(tab, "document.querySelectorAll('.again').length === 2")
    assert tab.input_value("#text") == ""
    tab.locator("#new").click()
    assert tab.input_value("#text") == "新的话"
    ask(tab, "乙")
    tab.locator("#new").click()
    assert tab.input_value("#text") == ""


def test_rename_export_and_delete(browse):
    tab = browse()
    ask(tab, "<img src=x onerror=alert(1)>")
    tab.click('[aria-label^="“<img"]')
    with tab.expect_download() as download:
        tab.click("#export-md")
    assert "回答：" in Path(download.value.path()).read_text(encoding="utf-8")
    tab.fill("#new-title", "<svg onload=alert(1)>")
    tab.press("#new-title", "Enter")
    until(tab, "document.querySelector('.conversation').innerText === '<svg onload=alert(1)>'")
    assert tab.locator("#title").inner_text() == "<svg onload=alert(1)>"
    tab.click('[aria-label^="“<svg"]')
    tab.click("#delete")
    assert tab.locator("#delete").inner_text() == "确定删除？"
    tab.click("#delete")
    tab.wait_for_selector(".greeting")
    tab.wait_for_selector(".none")


def test_a_backup_goes_out_and_in(browse, tmp_path):
    one, two = browse(), browse(locale="en-GB")
    ask(one, "备份")
    one.click("#data")
    with one.expect_download() as download:
        one.click('[href="/export.zip"]')
    download.value.save_as(tmp_path / "backup.zip")
    two.click("#data")
    two.set_input_files("#import-file", tmp_path / "backup.zip")
    until(two, "document.querySelector('#notice').innerText.startsWith('1 chats')")
    until(two, "document.querySelector('.conversation')?.innerText === '备份'")


def test_two_users_and_two_conversations_at_once(browse):
    one, two = browse(), browse()
    one.fill("#text", "慢，甲")
    one.press("#text", "Enter")
    until(one, "document.querySelector('.message.assistant .body')?.innerText.length > 2")
    one.click("#new")
    ask(one, "乙的事")
    ask(two, "丙的事")
    assert (last(one), last(two)) == ("回答：乙的事", "回答：丙的事")
    assert two.locator(".conversation").count() == 1 and one.locator(".conversation").count() == 2
    one.click(".conversation:has-text('慢，甲')")
    until(one, "document.querySelector('.words').innerText === '慢，甲'")
    until(one, "document.querySelector('.message.assistant .body')?.innerText.length > 5")
    one.reload()  # the answer goes on in the server
    until(one, "document.querySelector('.message.assistant .body')?.innerText.length > 10")
    one.press("#text", "Escape")
    whole(one)
    assert set(last(one)) == {"字"}
    one.click(".conversation:has-text('乙的事')")
    until(one, "document.querySelector('.words').innerText === '乙的事'")
    assert one.locator(".message").count() == 2 and last(one) == "回答：乙的事"


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


def test_languages_and_themes(browse, pictures):
    tab = browse(locale="en-US", color_scheme="dark")
    assert tab.locator("#new").inner_text() == "New chat" and tab.locator("html").get_attribute("lang") == "en"
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.click("#theme")
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.click("#theme")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == dark != light
    tab.click("#language")
    assert tab.locator("#new").inner_text() == "新会话" and tab.locator("html").get_attribute("lang") == "zh"
    tab.reload()
    tab.wait_for_selector(".greeting")
    assert tab.locator("#new").inner_text() == "新会话"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    ask(tab, "讲讲光合作用")
    tab.click("#language")
    pictures(tab, "chat-dark-en")


def test_settings_are_kept_with_the_conversation(browse, page_server, pictures):
    tab = browse()
    tab.click("#tune")
    tab.fill("#system", "简短")
    tab.fill("#max_new_tokens", "7")
    tab.select_option("#model", "sprout-large")
    ask(tab, "问")
    request = page_server.site.models["sprout-large"].requests[-1]
    assert request.sampling.max_new_tokens == 7 and request.prompt.messages[0]["content"] == "简短"
    pictures(tab, "settings")
    tab.reload()
    whole(tab)
    assert tab.locator("#system").input_value() == "简短" and tab.locator("#model").input_value() == "sprout-large"
    tab.click("#tune")
    tab.fill("#max_new_tokens", "0")
    tab.fill("#text", "不行")
    tab.press("#text", "Enter")
    until(tab, "document.querySelector('#notice').innerText.includes('max_new_tokens=0')")
    assert tab.locator("#text").input_value() == "不行"


def test_an_engine_that_breaks_off_is_said(browse):
    tab = browse()
    ask(tab, "坏")
    assert last(tab) == "写到一半" and "the engine stopped" in tab.locator(".error").inner_text()
    ask(tab, "好")
    assert last(tab) == "回答：好"


def test_nothing_is_fetched_from_elsewhere(browse):
    tab = browse()
    ask(tab, "图")
    assert tab.locator(".body img, .body svg").count() == 0 and "beacon.test" in last(tab)


def test_enter_of_an_input_method_sends_nothing(browse):
    tab = browse()
    tab.fill("#text", "nihao")
    tab.evaluate(
        """() => { const box = document.querySelector("#text"), all = {key: "Enter", bubbles: true, cancelable: true};
        box.dispatchEvent(new CompositionEvent("compositionstart"));
        box.dispatchEvent(new KeyboardEvent("keydown", {...all, isComposing: true}));
        box.dispatchEvent(new CompositionEvent("compositionend"));
        box.dispatchEvent(new KeyboardEvent("keydown", {...all, keyCode: 229})); }"""
    )
    tab.wait_for_timeout(200)
    assert tab.locator(".message").count() == 0
    tab.press("#text", "Enter")
    whole(tab)
    assert tab.locator(".message.user").count() == 1


def test_a_phone(browse, pictures):
    tab = browse(width=390, height=844, has_touch=True, is_mobile=True)
    ask(tab, "讲讲光合作用")
    box = tab.locator("#text").bounding_box()
    assert box["y"] + box["height"] <= tab.evaluate("visualViewport.height")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.evaluate("parseFloat(getComputedStyle(document.querySelector('#text')).fontSize)") >= 16
    pictures(tab, "phone")
    tab.tap("#menu")
    until(tab, "document.activeElement.id === 'side-close'")
    tab.tap("#new")
    tab.wait_for_selector(".greeting")
    tab.wait_for_selector("#side", state="hidden")


def test_the_keyboard_alone(browse):
    tab = browse()
    assert tab.evaluate("document.activeElement.id") == "text"
    tab.keyboard.type("一")
    tab.keyboard.press("Shift+Enter")
    tab.keyboard.type("二")
    tab.keyboard.press("Enter")
    whole(tab)
    assert tab.locator(".words").inner_text() == "一\n二"
    seen = []
    for _ in range(40):
        tab.keyboard.press("Tab")
        seen.append(tab.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
    assert {"new", "search", "language", "model", "tune", "复制", "编辑", "重新回答", "text"} <= set(seen)


def test_a_screen_reader(browse):
    """Names on everything that can be pressed; the answer is announced once, when it is whole."""
    tab = browse()
    tab.evaluate(
        """() => { window.told = []; const status = document.querySelector("#status");
        new MutationObserver(() => told.push(status.textContent)).observe(status, {childList: true}); }"""
    )
    ask(tab, "讲讲光合作用")
    told = [text for text in tab.evaluate("told") if text]
    assert len(told) <= 3 and told[0] == "正在回答" and told[-1].startswith("回答完毕") and "暗反应" in told[-1]
    tab.click("#tune")
    nameless = tab.evaluate(
        """[...document.querySelectorAll("button, a, input, select, textarea")].filter(e => !(
        e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"""
    )
    assert nameless == []


def test_axe_finds_nothing_serious(browse, axe):
    for options in ({}, {"width": 390, "height": 844}, {"color_scheme": "dark", "locale": "en-US"}):
        tab = browse(**options)
        ask(tab, "讲讲光合作用")
        for step in ("", "#tune", "#shelf"):
            if step:
                tab.keyboard.press("Escape")
                tab.click(step)
            tab.evaluate(axe)
            found = tab.evaluate("axe.run()")["violations"]
            shown = [(v["id"], v["impact"], [n["html"] for n in v["nodes"]][:3]) for v in found]
            assert [v for v in shown if v[1] in ("serious", "critical")] == [], re.sub(r"\\s+", " ", str(shown))
