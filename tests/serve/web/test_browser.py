"""The real page in a real browser: a conversation, its branches, its settings, its history.

`pytest tests/serve/web --screenshots docs/images` also writes the pictures that the documents show.
"""

from pathlib import Path

from .browsing import ask, last, place, until, whole


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


def test_the_backup_bears_the_day_of_the_reader(browse):
    tab = browse(timezone_id="Pacific/Kiritimati")
    ask(tab, "甲")
    tab.click("#data")
    with tab.expect_download() as download:
        tab.click('[href="/export.zip"]')
    day = tab.evaluate("new Date().toLocaleDateString('sv')")
    assert download.value.suggested_filename == f"mengya-{day}.zip"


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
