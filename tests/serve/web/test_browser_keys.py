"""The real page in a real browser, with keys: signing in and out."""

import hashlib

import pytest

from mengya.serve.api.keys import Keys

from .browsing import ask, until, whole


@pytest.fixture
def tab(chromium, serve, tmp_path):
    """Of somebody who has not signed in yet."""
    path = tmp_path / "keys.txt"
    rows = [f"{hashlib.sha256(key).hexdigest()} {name}\n" for key, name in ((b"mings", "小明"), (b"hongs", "小红"))]
    path.write_text("".join(rows), encoding="utf-8")
    page = serve(keys=Keys.read(path))
    context = chromium.new_context(locale="zh-CN")
    made = context.new_page()
    made.goto(page.url)
    yield made
    context.close()


def sign_in(tab, key="mings"):
    tab.fill("#key", key)
    tab.press("#key", "Enter")


def test_signing_in_and_out(tab):
    """A browser that may name no referrer does not say where a form comes from: nobody came in."""
    sign_in(tab, "no-such-key")
    until(tab, "document.querySelector('#wrong').innerText.includes('没有这个密钥')")
    sign_in(tab)
    tab.wait_for_selector(".greeting")
    ask(tab, "甲")
    tab.fill("#text", "没写完的话")
    tab.click("#data")
    tab.click("#sign-out button")
    tab.wait_for_selector("#key")
    sign_in(tab, "hongs")
    tab.wait_for_selector(".none")
    assert tab.locator(".message").count() == 0 and tab.input_value("#text") == ""


def test_who_guesses_is_told_to_wait(tab):
    for _ in range(11):
        sign_in(tab, "guess")
        tab.wait_for_load_state("load")
    until(tab, "document.querySelector('#wrong').innerText.includes('一分钟后再试')")


def test_who_is_signed_out_meanwhile_loses_nothing(tab):
    """open-webui#24298, fhswf/openai-ui#161: a token that was too old took the chat and what was written with it."""
    sign_in(tab)
    tab.wait_for_selector(".greeting")
    ask(tab, "甲")
    tab.fill("#text", "没写完的话")
    tab.context.clear_cookies()
    tab.press("#text", "Enter")
    until(tab, "document.querySelector('#notice').innerText.includes('登录已失效')")
    tab.reload()
    sign_in(tab)
    whole(tab)
    until(tab, "document.querySelector('#text').value === '没写完的话'")
    assert tab.locator(".words").inner_text() == "甲"
