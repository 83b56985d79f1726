"""The map from what is searched back to what was written."""

import random
import unicodedata

import pytest

pytest.importorskip("rjieba", reason="searching needs pip install 'mengya[documents]'")
pytest.importorskip("opencc", reason="searching needs pip install 'mengya[documents]'")

from mengya.rag.terms import normal, searched, terms_of


@pytest.mark.parametrize(("text", "part", "original"), [
    ("单价５㎏…每件", "每件", "每件"), ("单价５㎏…每件", "kg", "㎏"), ("单价５㎏…每件", "g", "㎏"),
    ("㍻三年國際論壇", "国际论坛", "國際論壇"),
    ("cafe\u0301 au lait", "cafe", "cafe\u0301"), ("ｶﾞﾗｽ窓", "ガラス", "ｶﾞﾗｽ"), ("⾼⽴⽅", "立方", "⽴⽅"),
    ("İstanbul 5", "5", "5"), ("ＧＢ２０２４", "gb2024", "ＧＢ２０２４"),
    ("违\u200b约\u200b金", "违约金", "违\u200b约\u200b金"), ("书：合 同 书。", "合同书", "合 同 书"),
])  # fmt: skip
def test_places_in_the_original(text, part, original):
    made = normal(text)
    begin = made.text.index(part)
    first, last = made.original(begin, begin + len(part))
    assert text[first:last] == original


def test_every_place_has_an_original_whatever_the_text():
    rng = random.Random(1)
    characters = "山水…㎏㍻ＡｂＣ１２ｶﾞﾊﾟe\u0301\u0327ẞİ國髮⾼⻘ 한글\u1100\u1161𠮷ﷺ\n"
    for _ in range(300):
        text = "".join(rng.choice(characters) for _ in range(rng.randrange(30)))
        made = normal(text)
        assert len(made.starts) == len(made.text) + 1 and made.starts[-1] == len(text)
        assert list(made.starts) == sorted(made.starts) and made.original(0, len(made.text)) == (0, len(text))
        assert normal(unicodedata.normalize("NFC", text)).text == made.text
        for term in terms_of(made.text):
            assert made.text[term.begin : term.end].startswith(term.text)


def test_every_letter_is_in_a_term():
    text = normal("重跑gen-itgc后清零，C++与100%的A4纸x y z한글กขค①Ⅳ½").text
    terms = terms_of(text)
    places = {place for term in terms for place in range(term.begin, term.end)}
    assert all(place in places for place, character in enumerate(text) if character.isalnum())
    assert searched(text) == tuple(" ".join(t.text for t in terms if t.whole == whole) for whole in (True, False))
    assert {"itgc", "genitgc", "清零", "c++", "c", "100%", "100", "a4", "x"} <= {term.text for term in terms}


@pytest.mark.parametrize(("one", "other", "shared"), [
    ("Wi-Fi", "wifi", "wifi"), ("e‐mail", "Email", "email"), ("COVID-19", "covid19", "covid19"),
    ("订单SO-2024-00123", "SO202400123", "so202400123"), ("libc-c++", "C++", "c++"),
])  # fmt: skip
def test_words_that_hyphens_join_are_one_as_well(one, other, shared):
    """MisakaNet PR#1584, knowledge-rag#140: with the hyphen, without it, and by a part."""
    first, second = ({term.text for term in terms_of(normal(text).text)} for text in (one, other))
    assert shared in first & second
