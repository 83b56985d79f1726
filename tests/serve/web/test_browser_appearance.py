"""The real page in a real browser: languages, themes, phones, the keyboard, screen readers, paper."""

import re

from .browsing import ask, until, whole


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


WIDE = """| 型号 | 价格 | 库存 | 说明 | manufacturer | 产地 |
|---|---|---|---|---|---|
| 甲型一号 | 3 | 5 | 这是很长很长的说明文字 | Continental | 上海 |"""


def test_a_wide_table_on_a_phone_is_scrolled(browse, page_server, monkeypatch):
    """elie222/rakazo#287, odysseus PR 3198: its columns were one character wide."""
    monkeypatch.setattr(page_server.site.models["sprout"], "answer", lambda request, choice: [WIDE])
    tab = browse(width=390, height=844, has_touch=True, is_mobile=True)
    ask(tab, "列表")
    widths = tab.evaluate("[...document.querySelectorAll('th')].map(e => e.clientWidth)")
    assert min(widths) >= 80 and tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.evaluate("(e => e.scrollWidth > e.clientWidth)(document.querySelector('.table'))")


def test_a_setting_is_shown_as_it_is(browse, page_server, monkeypatch):
    """The sliders had steps of 0.05: what is used was another value than what was said."""
    usual = page_server.site.sampling
    tab = browse()
    tab.evaluate("localStorage.setItem('settings', JSON.stringify({temperature: 0.33, top_p: 0.01}))")
    tab.reload()
    tab.wait_for_selector(".greeting")
    ask(tab, "甲")
    used = page_server.site.models["sprout"].requests[-1].sampling
    assert (used.temperature, used.top_p) == (0.33, 0.01) and usual.temperature != 0.33
