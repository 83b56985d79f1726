"""The real page in a real browser: what happens elsewhere, or meanwhile, takes nothing away from who is reading."""

import base64
import io

import pytest
from PIL import Image

from ..api.scripted import Say
from .browsing import ask, last, until, whole


@pytest.fixture
def long(page_server):
    """Answers of many paragraphs, the first ones at once."""
    backend = page_server.site.models["sprout"]
    before = backend.answer
    backend.answer = lambda request, choice: (
        [f"第{n}段\n\n" for n in range(60)] + [Say(f"慢{n}\n\n", wait=0.1) for n in range(400)]
    )
    yield
    backend.answer = before


def begin(tab, text):
    tab.fill("#text", text)
    tab.press("#text", "Enter")
    until(tab, "document.querySelectorAll('.message.assistant .block').length > 60")


def place(tab):
    return tab.evaluate("document.querySelector('#messages').scrollTop")


def test_a_connection_that_breaks_keeps_the_reader_where_they_are(browse, long):
    """jan#4253: the page jumped to the end."""
    tab = browse()
    begin(tab, "讲长一点")
    tab.evaluate("document.querySelector('#messages').scrollTop = 300")
    tab.evaluate("document.querySelectorAll('.block')[10].marked = true")
    tab.click('.message.user [aria-label="编辑"]')
    tab.fill(".edit", "改了一半")
    scrolled = place(tab)
    tab.context.set_offline(True)
    tab.wait_for_timeout(1500)
    tab.context.set_offline(False)
    count = tab.locator(".block").count()
    until(tab, f"document.querySelectorAll('.block').length > {count + 10}")
    assert abs(place(tab) - scrolled) < 5 and tab.input_value(".edit") == "改了一半"
    assert tab.evaluate("document.querySelectorAll('.block')[10].marked")  # what is selected stays so
    tab.keyboard.press("Escape")  # ends the change alone
    tab.keyboard.press("Escape")
    whole(tab)
    tab.evaluate("document.querySelector('#messages').scrollTop = 200")
    tab.click("#language")
    tab.wait_for_selector('[aria-label="Copy"]')
    assert abs(place(tab) - 200) < 5


def test_the_other_tab_deletes_what_is_read_here(browse):
    one = browse()
    ask(one, "甲")
    two = one.context.new_page()
    two.goto(one.url)
    whole(two)
    one.fill("#text", "没写完的话")
    two.click('[aria-label^="“甲”"]')
    two.click("#delete")
    two.click("#delete")
    two.wait_for_selector(".greeting")
    one.press("#text", "Enter")
    one.wait_for_selector(".greeting")
    assert "已被删除" in one.locator("#notice").inner_text() and one.input_value("#text") == "没写完的话"
    one.press("#text", "Enter")
    whole(one)
    assert last(one) == "回答：没写完的话" and one.input_value("#text") == ""


def test_the_other_tab_deletes_while_it_is_written_here(browse, long):
    one = browse()
    begin(one, "讲长一点")
    two = one.context.new_page()
    two.goto(one.url)
    two.click('[aria-label^="“讲长一点”"]')
    two.click("#delete")
    two.click("#delete")
    one.wait_for_selector(".greeting")
    until(one, "document.querySelector('#notice').innerText === '这个会话已被删除。'")
    assert one.locator("#send").get_attribute("aria-label") == "发送"


def test_a_title_comes_over_from_the_other_tab(browse):
    one = browse()
    ask(one, "甲")
    two = one.context.new_page()
    two.goto(one.url)
    whole(two)
    two.click('[aria-label^="“甲”"]')
    two.fill("#new-title", "新名字")
    two.press("#new-title", "Enter")
    until(two, "document.querySelector('#title').innerText === '新名字'")
    one.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    until(one, "document.querySelector('#title').innerText === '新名字'")


def test_pressing_twice_asks_once(browse):
    """opencode#27592, chatwoot#946."""
    tab = browse()
    ask(tab, "甲")
    tab.evaluate("() => { const again = document.querySelector('.again'); again.click(); again.click(); }")
    tab.wait_for_selector(".message.assistant .versions")
    whole(tab)
    assert tab.locator(".message.assistant .versions").inner_text() == "2/2"


def test_choosing_a_branch_keeps_the_place_and_the_focus(browse):
    tab = browse(height=500)
    ask(tab, "一")
    tab.click(".again")
    tab.wait_for_selector(".message.assistant .versions")
    whole(tab)
    for text in ("二\n" * 40, "三\n" * 40):
        ask(tab, text)
    tab.evaluate("document.querySelector('#messages').scrollTop = 0")
    tab.focus('.message.assistant [aria-label="上一个版本"]')
    before = place(tab)
    tab.keyboard.press("Enter")
    until(tab, "document.querySelector('.message.assistant .versions').innerText === '1/2'")
    until(tab, "document.activeElement.getAttribute('aria-label') === '下一个版本'")
    tab.keyboard.press("Enter")
    until(tab, "document.querySelector('.message.assistant .versions').innerText === '2/2'")
    assert abs(place(tab) - before) < 5 and tab.locator(".message").count() == 6


def test_what_is_chosen_last_is_shown(browse):
    tab = browse()
    for text in ("甲", "乙"):
        tab.click("#new")
        ask(tab, text)
    tab.click("#new")
    held = []
    tab.route("**/run/open", lambda route: held.append(route))
    tab.click(".conversation:has-text('甲')")
    tab.click(".conversation:has-text('乙')")
    until(tab, "true")
    while len(held) < 2:
        tab.wait_for_timeout(20)
    for route in reversed(held):
        route.continue_()
        tab.wait_for_timeout(300)
    assert tab.locator("#title").inner_text() == "乙" and last(tab) == "回答：乙"


def test_an_answer_to_a_slow_send_lands_where_it_was_asked(browse):
    tab = browse()
    for text in ("甲", "乙"):
        tab.click("#new")
        ask(tab, text)
    held = []
    tab.route("**/run/send", lambda route: held.append(route))
    tab.fill("#text", "给乙的话")
    tab.press("#text", "Enter")
    tab.click(".conversation:has-text('甲')")
    until(tab, "document.querySelector('#title').innerText === '甲'")
    tab.fill("#text", "给甲的话")
    held[0].continue_()
    tab.wait_for_timeout(500)
    assert tab.locator("#title").inner_text() == "甲" and tab.input_value("#text") == "给甲的话"
    tab.click(".conversation:has-text('乙')")
    until(tab, "document.querySelectorAll('.message').length === 4")
    whole(tab)
    assert last(tab) == "回答：给乙的话" and tab.input_value("#text") == ""


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


def test_the_backup_bears_the_day_of_the_reader(browse):
    tab = browse(timezone_id="Pacific/Kiritimati")
    ask(tab, "甲")
    tab.click("#data")
    with tab.expect_download() as download:
        tab.click('[href="/export.zip"]')
    day = tab.evaluate("new Date().toLocaleDateString('sv')")
    assert download.value.suggested_filename == f"mengya-{day}.zip"


def test_a_base_that_is_gone_is_said_below_the_answer(browse):
    tab = browse()
    tab.click("#shelf")
    tab.fill("#base-name", "制度")
    tab.press("#base-name", "Enter")
    tab.check('.base input[type="checkbox"]')
    ask(tab, "甲")
    assert "没有使用这些资料库" in tab.locator(".state").inner_text() and "制度" in tab.locator(".state").inner_text()
