"""Pictures: shown to a model that sees, read as text for one that does not."""

import base64
import io
import zlib

import pytest
from PIL import Image

from mengya.rag.reading.limits import Limits
from mengya.serve.web.pictures import drawn

from ..api.scripted import Scripted, soon
from .test_documents import RULES


def picture(size=(40, 30), kind="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "green").save(buffer, kind)
    return buffer.getvalue()


def add(a, conversation, name="叶.png", content=None):
    return a.post("/pictures", params={"conversation": conversation, "name": name}, content=content or picture()).json()


def test_a_picture_goes_with_its_question(serve):
    backend = Scripted()
    page = serve(backend, seeing={"sprout"})
    a, b = page.visitor(), page.visitor()
    assert a.call("start")["models"][0]["sees"]
    made = a.call("create", "x", {})["id"]
    one = add(a, made, content=picture((4000, 100)))["value"]
    view = a.talk("这是什么？", made, pictures=[one, "unknown"])
    question = view["messages"][0]
    assert question["pictures"] == [{"id": one, "name": "叶.png"}]
    words, shown = backend.requests[0].prompt.messages[-1]["content"]
    assert words == {"type": "text", "text": "这是什么？"}
    kind, _, data = shown["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size[0] <= 1568
    a.talk("还有呢？", made, view["messages"][-1]["id"])
    assert backend.requests[1].prompt.messages[0]["content"][1] == shown
    assert a.get(f"/pictures/{one}").headers["content-type"] == "image/jpeg"
    assert b.get(f"/pictures/{one}").status_code == 404 and "no such" in add(b, made)["error"]
    other = b.talk("看看", pictures=[one])
    assert other["messages"][0]["pictures"] == []
    a.call("delete", made)
    assert a.get(f"/pictures/{one}").status_code == 404


def test_a_model_that_does_not_see_is_told_the_words_alone(serve):
    """earendil-works/pi#3429, openclaw#25946: the pictures were left out without a word."""
    page = serve()
    a = page.visitor()
    made = a.call("create", "x", {})["id"]
    view = a.talk("这是什么？", made, pictures=[add(a, made)["value"]])
    assert page.backend.requests[-1].prompt.messages[-1]["content"] == "这是什么？"
    assert view["messages"][-1]["info"]["unseen"] == ["叶.png"]
    assert "unseen" not in a.talk("没有图")["messages"][-1]["info"]


def test_more_pictures_than_one_question_takes_are_refused(serve):
    """They were left out without a word."""
    page = serve(seeing={"sprout"})
    a = page.visitor()
    made = a.call("create", "x", {})["id"]
    assert "9 pictures are too many" in a.call("send", made, "", "看看", {"pictures": [add(a, made)["value"]] * 9})
    assert not page.backend.requests


def asked_of_both(request, choice):
    content = request.prompt.messages[-1]["content"]
    words = content if isinstance(content, str) else content[0]["text"]
    return ["每小时收费八元[1]。"] if "停车" in words.splitlines()[-1] else ["一片叶子"]


def test_pictures_and_documents_go_together(serve):
    """Documents were left out as soon as a picture was there."""
    backend = Scripted(asked_of_both)
    backend.context = 8192
    page = serve(backend, seeing={"sprout"})
    a = page.visitor()
    a.call("make_base", "园区")
    a.upload("base:园区", "规定.md", RULES.encode())
    a.read("base:园区")
    made = a.call("create", "x", {})["id"]
    shown = [add(a, made)["value"]]
    view = a.talk("访客停车每小时收费多少？", made, pictures=shown, bases=["base:园区"])
    words, picture = page.backend.requests[-1].prompt.messages[-1]["content"]
    assert "八元" in words["text"] and picture["type"] == "image_url"
    assert view["messages"][-1]["info"]["sources"][0]["file"] == "规定.md"
    for question in (
        "叶子是什么颜色？",
        "访客的叶子是什么颜色？",
    ):  # nothing is found; something that says nothing of it
        view = a.talk(question, made, view["messages"][-1]["id"], bases=["base:园区"])
        assert view["messages"][-1]["text"] == "一片叶子" and not view["messages"][-1]["info"]["sources"]
        first = page.backend.requests[-1].prompt.messages[0]
        assert first["content"][-1]["type"] == "image_url"


def test_a_picture_may_stand_alone(serve):
    """NextChat PR 5599: a question that is a picture."""
    page = serve(Scripted(), Scripted(name="blind"), seeing={"sprout"})
    a = page.visitor()
    made = a.call("create", "叶.png", {})["id"]
    one = add(a, made)["value"]
    for settings in ({}, {"pictures": ["unknown"]}, {"pictures": [one], "model": "blind"}):
        assert "empty" in a.call("send", made, "", " ", settings)
    view = a.talk("", made, pictures=[one])
    assert view["title"] == "叶.png" and view["messages"][0]["pictures"][0]["id"] == one
    (shown,) = page.backend.requests[0].prompt.messages[-1]["content"]
    assert shown["type"] == "image_url"
    a.talk("还有呢？", made, view["messages"][-1]["id"], model="blind")
    said = [message["content"] for message in page.site.models["blind"].requests[0].prompt.messages]
    assert said == ["…", "你好，0！", "还有呢？"]


def test_grey_of_sixteen_bits_stays_grey(tmp_path):
    """What hospitals and scanners write; all but the darkest would be white."""
    path = tmp_path / "x"
    Image.new("I;16", (4, 4), 128 * 256).save(path, "PNG")
    assert Image.open(io.BytesIO(drawn(path, Limits()))).getpixel((0, 0)) == (128, 128, 128)


def bomb() -> bytes:
    """30,000 x 30,000 pixels, said in the head of a small file."""
    data = bytearray(picture((30, 30)))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no picture", "no picture"), (picture()[:60], "no picture"), (b"<svg onload=alert(1)></svg>", "no picture"),
        (bomb(), "60,000,000 pixels"), (b"0" * 20_000_001, "larger than 20 MB"),
    ],
    ids=["text", "cut", "svg", "bomb", "large"],
)  # fmt: skip
def test_what_is_no_picture_is_refused(page, content, words):
    a = page.visitor()
    made = a.call("create", "x", {})["id"]
    assert words in add(a, made, "<b>.png", content)["error"]
    soon(lambda: not list(page.library.uploads.iterdir()), 20)
