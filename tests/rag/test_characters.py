"""Radicals become the characters that they look like."""

import unicodedata

from mengya.rag.characters import fold_radicals


def test_a_radical_is_found_by_its_character():
    assert fold_radicals("⾼⽴⽅⼀") == "高立方一"
    assert fold_radicals("\u2ed8\u2f00\u2fd5") == "青一龠"


def test_every_radical_but_one_has_a_character_and_places_stay():
    radicals = [chr(code) for code in range(0x2E80, 0x2FE0) if unicodedata.category(chr(code)) != "Cn"]
    folded = fold_radicals("".join(radicals))
    assert len(folded) == len(radicals) == 115 + 214
    assert [a for a, b in zip(radicals, folded, strict=True) if a == b] == ["\u2e80"]
    assert all("\u3400" <= b <= "\u9fff" or b >= "\U00020000" for b in folded[1:])
    assert all(
        unicodedata.normalize("NFKC", a) in (a, b) for a, b in zip(radicals, folded, strict=True)
    )  # where NFKC folds, it folds to the same


def test_everything_else_stays():
    text = "高立方一 ＡＢＣ ㎏ … 𠮷\n\u31d0"
    assert fold_radicals(text) == text
