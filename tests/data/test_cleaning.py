"""Cleaning keeps what is text; the hash decides duplicates and the held-out split."""

import random

from mengya.data.cleaning import clean_document, repair_surrogates, strip_controls


def test_only_what_is_no_text_goes() -> None:
    assert clean_document("\ufeff\n\n第一行  \r\n\r\n\r\n\r\n\r\n　　第二行\t\n\x00\x07a\x85b\ufffd\n") == (
        "第一行\n\n\n　　第二行\na" + "b\ufffd"
    )
    kept = "ＡＢＣ，“全角”\u2028é e\u0301\tcode:\n    indented\n\n\n🙂"
    assert clean_document(kept) == kept
    assert strip_controls("a\rb\r\nc\x1b[0m\ud83d") == "a\nb\nc[0m\ufffd"
    assert repair_surrogates("好🙂") == "好🙂"
    assert clean_document(" \n\u3000\n") == ""


def test_cleaning_is_idempotent_encodable_and_linear() -> None:
    noise = random.Random(0)
    alphabet = "ab好　 \t\n\n\r\x00\x85\ufeff\ufffd\ud800\u2028"
    for _ in range(500):
        text = "".join(noise.choices(alphabet, k=noise.randrange(60)))
        cleaned = clean_document(text)
        assert clean_document(cleaned) == cleaned
        cleaned.encode("utf-8")
        visible = [c for c in text if c in "ab好\u2028"]
        assert [c for c in cleaned if c in "ab好\u2028"] == visible
    clean_document(" " * 3_000_000 + "x" + "\n" * 3_000_000 + "y")  # a quadratic search would never come back
