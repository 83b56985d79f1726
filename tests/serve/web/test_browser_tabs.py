"""The real page in a real browser: what happens elsewhere, or meanwhile, takes nothing away from who is reading."""

import pytest

from ..api.scripted import Say
from .browsing import ask, beside, deleted, last, place, until, whole


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


def test_the_other_tab_deletes_what_is_read_here(browse):
    one = browse()
    ask(one, "甲")
    two = beside(one)
    whole(two)
    one.fill("#text", "没写完的话")
    deleted(two, "甲")
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
    two = beside(one)
    deleted(two, "讲长一点")
    one.wait_for_selector(".greeting")
    until(one, "document.querySelector('#notice').innerText === '这个会话已被删除。'")
    assert one.locator("#send").get_attribute("aria-label") == "发送"


def test_a_title_comes_over_from_the_other_tab(browse):
    one = browse()
    ask(one, "甲")
    two = beside(one)
    whole(two)
    two.click('[aria-label^="“甲”"]')
    two.fill("#new-title", "新名字")
    two.press("#new-title", "Enter")
    until(two, "document.querySelector('#title').innerText === '新名字'")
    one.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    until(one, "document.querySelector('#title').innerText === '新名字'")


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


def test_a_window_beside_this_one_has_written_on(browse):
    """Both are in sight, so that nothing becomes visible: the next question was asked without what the other has."""
    one = browse()
    ask(one, "甲")
    two = beside(one)
    whole(two)
    ask(two, "乙")
    one.evaluate("dispatchEvent(new Event('focus'))")
    until(one, "document.querySelectorAll('.message').length === 4")
    ask(one, "丙")
    assert one.locator(".message").count() == 6 and one.locator(".versions").count() == 0


def test_a_seventh_tab_opens_and_can_stop_its_answer(browse):
    """freenet-core#5213, Chorus#521: with an answer in each of six, it was never loaded."""
    first = browse()
    tabs = [first, *(beside(first) for _ in range(6))]
    for number, tab in enumerate(tabs):
        tab.fill("#text", f"慢，第{number}个")
        tab.press("#text", "Enter")
        until(tab, "document.querySelector('.message.assistant .body')?.innerText.length > 2")
    for tab in (tabs[-1], first):
        length = len(last(tab))
        until(tab, f"document.querySelector('.message.assistant .body').innerText.length > {length + 10}")
        tab.press("#text", "Escape")
        whole(tab)
        assert set(last(tab)) == {"字"} and "已停止" in tab.locator(".state").inner_text()
    for tab in tabs[1:-1]:
        tab.press("#text", "Escape")
        whole(tab)
