"""Numbers are found in both ways of writing."""

import pytest

from mengya.rag.numbers import numbers


@pytest.mark.parametrize(("text", "expected"), [
    ("第三条", ["3", "3条"]), ("第3条", ["3条"]), ("第一百零五条", ["105", "105条"]),
    ("二〇二四年", ["2024", "2024年"]),
    ("2024年五月", ["2024年", "5", "5月"]), ("十五天", ["15", "15天"]), ("两万三千元", ["23000", "23000元"]),
    ("一亿二千万", ["120000000"]), ("三万亿", ["3000000000000"]),
    ("百分之五。", []), ("千万不要", []), ("一般统一", []),
    ("第十二。", ["12"]), ("007号", ["7号"]),
    ("3.5", []), ("9" * 40, []), ("一" * 40 + "年", ["1" * 16, "1" * 16, "1" * 8, "1" * 8 + "年"]), ("", []),
])  # fmt: skip
def test_numbers_in_digits(text, expected):
    assert numbers(text) == expected
