"""The real page in a real browser: who reads, selects, copies or looks for something is not disturbed."""

import re

import pytest

from ..api.scripted import Say
from .browsing import ask, chosen_base, last, place, until, whole


@pytest.fixture
def says(page_server):
    """says(pieces): what the model answers from now on."""
    backend = page_server.site.models["sprout"]
    before = backend.answer

    def change(*pieces) -> None:
        backend.answer = lambda request, choice: list(pieces)

    yield change
    backend.answer = before


def begin(tab, text="讲") -> None:
    tab.fill("#text", text)
    tab.press("#text", "Enter")
    until(tab, "document.querySelector('.message.assistant:last-child .body')?.children.length > 0")


def test_moving_up_a_little_is_enough_to_stay(browse, says):
    """anything-llm#823, LibreChat#983, NextChat#4019: who moved up while an answer came was pulled down again."""
    says(*[f"第{n}段\n\n" for n in range(60)], *[Say(f"慢{n}\n\n", wait=0.05) for n in range(400)])
    tab = browse()
    begin(tab)
    until(tab, "document.querySelectorAll('.block').length > 70")
    box = "document.querySelector('#messages')"
    until(tab, f"{box}.scrollHeight - {box}.scrollTop - {box}.clientHeight < 5")  # it goes along
    tab.hover("#messages")
    tab.mouse.wheel(0, -60)
    tab.wait_for_timeout(300)
    before, count = place(tab), tab.locator(".block").count()
    until(tab, f"document.querySelectorAll('.block').length > {count + 10}")
    assert place(tab) == before
    tab.mouse.wheel(0, 100_000)
    until(tab, f"{box}.scrollHeight - {box}.scrollTop - {box}.clientHeight < 5")
    count = tab.locator(".block").count()
    until(tab, f"document.querySelectorAll('.block').length > {count + 10}")
    until(tab, f"{box}.scrollHeight - {box}.scrollTop - {box}.clientHeight < 5")
    tab.press("#text", "Escape")
    whole(tab)


def test_what_grows_keeps_what_is_selected_and_scrolled(browse, says):
    """sourcegraph/cody#4268, Kilo-Org/kilocode#14164: a selection in what was still growing was lost."""
    code = ["```python\nx = '", "很长" * 200, "'\n", *[Say(f"y{n} = {n}\n", wait=0.05) for n in range(200)]]
    says(*code)
    tab = browse()
    begin(tab)
    until(tab, "document.querySelector('.code pre').innerText.includes('y3')")
    tab.evaluate("document.querySelector('.code pre').scrollLeft = 200")
    tab.evaluate("getSelection().selectAllChildren(document.querySelector('.code .s1'))")
    selected = tab.evaluate("getSelection().toString()")
    button = tab.evaluate_handle("document.querySelector('.copy-code')")
    until(tab, "document.querySelector('.code pre').innerText.includes('y20')")
    assert tab.evaluate("getSelection().toString()") == selected and "很长" in selected
    assert tab.evaluate("document.querySelector('.code pre').scrollLeft") == 200
    assert tab.evaluate("b => b.isConnected", button)
    tab.press("#text", "Escape")
    whole(tab)
    assert tab.locator(".code .copy-code svg").count() == 1


def test_thoughts_keep_every_character(browse, says):
    """elizaOS#30904: characters outside the first 65,536 were counted twice."""
    thought = "😀𠮷想一想"
    says("<think>", *[Say(c, wait=0.05) for c in thought * 8], "</think>", "好")
    tab = browse()
    ask(tab, "想")
    assert tab.locator(".thought-text").text_content() == thought * 8
    tab.click("#language")
    assert tab.locator(".thought-text").text_content() == thought * 8


def test_copying_twice_leaves_the_button_as_it_was(browse):
    tab = browse(permissions=["clipboard-read", "clipboard-write"])
    ask(tab, "甲")
    copy = tab.locator(".message.assistant .tools [aria-label='复制']")
    for _ in range(2):
        copy.click()
    assert tab.evaluate("navigator.clipboard.readText()") == "回答：甲"
    tab.wait_for_timeout(1800)
    assert copy.locator("use").get_attribute("href") == "#i-copy"
    tab.evaluate("navigator.clipboard.writeText = () => Promise.reject(); document.execCommand = () => false")
    copy.click()
    until(tab, "document.querySelector('#notice').innerText.includes('不允许复制')")


def test_escape_of_an_input_method_stops_nothing(browse):
    """coollabsio/jean#685: Escape that ends the spelling of a word is no Escape."""
    tab = browse()
    begin(tab, "慢慢写")
    press = """more => document.querySelector("#text").dispatchEvent(
        new KeyboardEvent("keydown", {key: "Escape", bubbles: true, ...more}))"""
    tab.evaluate(press, {"isComposing": True})
    tab.evaluate(press, {"keyCode": 229})
    length = len(last(tab))
    until(tab, f"document.querySelector('.message.assistant .body').innerText.length > {length + 5}")
    tab.evaluate(press, {})
    whole(tab)


def test_a_hit_in_another_branch_is_shown(browse):
    """LibreChat#7302: the conversation was opened, but not the branch with what was looked for."""
    tab = browse(height=500)
    ask(tab, "苹果\n" * 30)
    tab.click('.message.user [aria-label="编辑"]')
    tab.fill(".edit", "梨\n" * 30)
    tab.press(".edit", "Enter")
    tab.wait_for_selector(".message.user .versions")
    whole(tab)
    ask(tab, "后来\n" * 30)
    tab.fill("#search", "苹果")
    until(tab, "document.querySelectorAll('.conversation').length === 1")
    tab.click(".conversation")
    tab.wait_for_selector(".message.assistant.found")
    assert last(tab).startswith("回答：苹果") and tab.locator(".message.user .versions").inner_text() == "1/2"
    assert 0 <= tab.locator(".found").bounding_box()["y"] - tab.locator("#messages").bounding_box()["y"] < 40
    tab.fill("#search", "后来")
    tab.click(".conversation")
    until(tab, "document.querySelector('.message.found .body')?.innerText.startsWith('回答：后来')")
    tab.fill("#search", "")
    tab.click("#new")
    tab.click(".conversation")
    until(tab, "document.querySelector('.words')?.innerText.startsWith('梨')")
    assert tab.locator(".found").count() == 0


def test_another_language_changes_nothing_else(browse):
    """What was chosen for a new conversation was forgotten, and a change that was begun."""
    tab = browse()
    chosen_base(tab, "制度")
    tab.wait_for_selector(".chip.base")
    tab.fill("#text", "没写完")
    tab.click("#language")
    until(tab, "document.querySelector('.chip.base .name')?.innerText === 'Base 制度'")
    assert tab.input_value("#text") == "没写完" and tab.evaluate("document.activeElement.id") == "language"
    tab.click("#language")
    ask(tab, "甲")
    tab.click('.message.user [aria-label="编辑"]')
    tab.fill(".edit", "改了一半")
    tab.click("#language")
    tab.wait_for_selector('.message.assistant [aria-label="Copy"]')
    assert tab.input_value(".edit") == "改了一半" and tab.evaluate("document.activeElement.id") == "language"
    ask(tab, "乙")
    assert tab.input_value(".edit") == "改了一半"


def test_paper_has_the_whole_conversation(browse, says):
    """open-webui#1280, LibreChat#2480: one page, with what stands at the side; of a dark page, light on white."""
    says(*[f"第{n}段\n\n" for n in range(150)])
    tab = browse(color_scheme="dark")
    ask(tab, "讲")
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert len(re.findall(rb"/Type /Page\b", tab.pdf())) >= 3
    tab.emulate_media(media="print")
    for hidden in ("#side", "#composer", ".tools", "#model"):
        assert not tab.locator(hidden).first.is_visible(), hidden
    assert tab.evaluate("getComputedStyle(document.querySelector('.words')).color") == "rgb(28, 33, 29)"
    says("短")
    tab.emulate_media(media="screen")
    tab.click("#new")
    ask(tab, "w" * 300)
    tab.emulate_media(media="print")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")  # else all of it is printed smaller


def test_a_long_history_is_not_laid_out_where_nobody_looks(browse):
    """janhq/jan#3269: the page was slow for who has thousands of conversations. With 5,000 a question took a second."""
    tab = browse()
    create = """async () => { for (let n = 0; n < 60; n++) await fetch("/gradio/gradio_api/run/create", {method: "POST",
        headers: {"Content-Type": "application/json"}, body: JSON.stringify({data: [`会话${n}`, {}]})}); }"""
    tab.evaluate(create)
    tab.reload()
    until(tab, "document.querySelectorAll('.conversation').length === 60")
    laid = "n => document.querySelectorAll('.conversation')[n].checkVisibility({contentVisibilityAuto: true})"
    assert tab.evaluate(laid, 0) and not tab.evaluate(laid, 59)
    tab.locator(".conversation").last.click()
    until(tab, "document.querySelector('#title').innerText === '会话0'")
    tab.wait_for_timeout(200)
    assert tab.evaluate(laid, 59)
