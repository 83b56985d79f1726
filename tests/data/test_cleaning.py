"""Cleaning keeps what is text; the hash decides duplicates and the held-out split."""

import random

from mengya.data.cleaning import clean_document, content_hash, is_heldout, repair_surrogates, strip_controls


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


def test_the_hash_ignores_white_space_only() -> None:
    assert content_hash(" a\n\nb　c") == content_hash("a b c\t") != content_hash("ab c")
    assert len(content_hash("")) == 16 and content_hash("A") != content_hash("a")
    assert content_hash("好").hex() == "d7fc1f822b8676d01757058a2d99b113"  # stable across versions: splits depend on it


def test_the_split_is_stable_nested_and_of_the_right_size() -> None:
    hashes = [content_hash(f"document {i}") for i in range(20_000)]
    held = {fraction: {h for h in hashes if is_heldout(h, fraction)} for fraction in (0.0, 0.01, 0.1, 1.0)}
    assert not held[0.0] and len(held[1.0]) == len(set(hashes))
    assert held[0.01] < held[0.1]
    assert 150 < len(held[0.01]) < 250 and 1850 < len(held[0.1]) < 2150
