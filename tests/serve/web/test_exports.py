"""Exports of one conversation: Markdown that any program shows as it was said, JSON that comes back as it went out."""

import base64
import json
import re
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

from mengya.serve.web.markdown import to_markdown
from mengya.serve.web.store import Conversation, Message

from ..api.scripted import Scripted
from .test_pictures import add, picture


def told(*said, title="标题", **settings):
    """The Markdown of a conversation of these texts, each a text or (text, info)."""
    messages = []
    for number, each in enumerate(said):
        text, info = each if isinstance(each, tuple) else (each, {})
        role = "assistant" if number % 2 else "user"
        messages.append(Message(str(number), str(number - 1) if number else None, role, text, "done", number, info))
    return to_markdown(Conversation("c", title, 0, 0, messages[-1].id, settings, messages=tuple(messages)))


def blocks(text):
    """(kind, content) of what a reader of Markdown shows."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return [(token.type, token.content.strip()) for token in tokens if token.content.strip()]


@pytest.mark.parametrize(
    "text",
    [
        "```md\n一\n", "````md\n```\n里面\n```\n", "~~~\n```", "<!-- 注释", "说明：\n<!-- 注释",
        "<script>\nlet x", "<style>\n\nb {",
        "<PRE class=x>\n\n一", "<?php\n\necho", "<![CDATA[\n\n一", "<!DOCTYPE\n\n", "```\n<!--\n```\n<textarea>",
        "| a | b |\n|---|---|\n| 1",
        "- 一\n\n  ```\n  二", "> ```\n> 三", "<!-->", "`<!--`",
    ],
)  # fmt: skip
def test_nothing_that_is_left_open_swallows_what_follows(text):
    """chatgpt-exporter#43, chatbox#1539: from a block of code on, everything was code."""
    for shown in (told(text, "回答"), told("问", text, "再问"), told("问", "回答", system=text)):
        found = blocks(shown)
        assert (("inline", "**Model**") in found and ("inline", "回答") in found) or ("inline", "再问") in found, shown


def test_what_is_closed_stays_as_it_was_written():
    for text in (
        "```\n<!--\n```",
        "<!-- a -->",
        "<pre>x</pre>\n\ny",
        "<?x?>",
        "a <!-- b",
        "表：\n\n| a |\n|---|\n| `|` |",
    ):
        assert f"\n\n{text}\n\n**Model**" in told(text, "答"), text


def test_names_are_no_markup():
    source = {"id": 1, "file": "<img src=x>[a](b)`.md", "pages": [], "quote": "看：\n```\n原文"}
    shown = told("问", ("答[1]", {"sources": [source, source | {"id": 2, "quote": "二"}]}), title="<img src=x> [x](y)")
    found = blocks(shown)
    assert found[0] == ("inline", "\\<img src=x> \\[x\\](y)")
    assert [text for kind, text in found if kind == "fence"] == ["原文"]
    assert MarkdownIt().render(shown).count("<img") == 0 and "<p>[2] " in MarkdownIt().render(shown)


def test_thoughts_and_other_branches_stay_away(serve):
    page = serve(
        lambda request, choice: [f"<think>想{len(page.backend.requests)}</think>答{len(page.backend.requests)}"]
    )
    a = page.visitor()
    view = a.talk("问 🌱 مرحبا")
    a.whole(a.call("again", view["id"], view["messages"][-1]["id"], {}))
    text = a.get(f"/export/{view['id']}.md").text
    assert "想" not in text and "答2" in text and "答1" not in text and "问 🌱 مرحبا" in text
    told = a.get(f"/export/{view['id']}.json").json()["conversations"][0]
    assert len(told["messages"]) == 3


def test_pictures_go_along(serve):
    page = serve(Scripted(), seeing={"sprout"})
    a, b = page.visitor(), page.visitor()
    made = a.call("create", "x", {})["id"]
    one = add(a, made, "叶]子.png")["value"]
    a.talk("这是什么？", made, pictures=[one])
    text = a.get(f"/export/{made}.md").text
    (source,) = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="叶\]子.png"', MarkdownIt().render(text))
    assert base64.b64decode(source) == a.get(f"/pictures/{one}").content
    assert text.index("data:") > text.index("你好，0！")  # what is said can be read
    told = a.get(f"/export/{made}.json").content
    assert b.post("/import", content=told).json()["value"] == {"conversations": 1, "files": 0}
    (own,) = b.call("conversations", "")
    other = b.call("open", own["id"])["messages"][0]["pictures"][0]["id"]
    assert b.get(f"/pictures/{other}").content == a.get(f"/pictures/{one}").content
    assert b.post("/import", content=told).json()["value"] == {"conversations": 0, "files": 0}
    broken = json.loads(told)
    broken["pictures"][0]["data"] = base64.b64encode(picture()[:50]).decode()
    assert "picture" in page.visitor().post("/import", content=json.dumps(broken)).json()["error"]


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ('a/b\\c:d*e?f"g<h>i|j', "a_b_c_d_e_f_g_h_i_j"), ("CON", "_CON"), ("com1", "_com1"), ("…", "_"),
        ("../../x", "______x"),
        ("हिन्दी में", "हिन्दी में"), ("مرحبا", "مرحبا"), ("🌱 芽", "_ 芽"), ("x" * 59 + " y", "x" * 59),
        ("a\u202eb.exe", "ab_exe"),
    ],
)  # fmt: skip
def test_files_have_names_that_any_system_takes(page, title, name):
    a = page.visitor()
    view = a.talk("问")
    a.call("rename", view["id"], title)
    for kind in ("md", "json"):
        told = a.get(f"/export/{view['id']}.{kind}").headers["content-disposition"]
        assert unquote(told.partition("''")[2]) == f"{name}.{kind}"


def test_the_backup_has_the_day_of_the_reader(page):
    """Its name is the page's, which knows what day it is there."""
    assert page.visitor().get("/export.zip").headers["content-disposition"] == "attachment"
