"""Numbers in texts, whichever way they are written: 第三条 and 第3条, 二〇二四年 and 2024年, 壹拾万元, 10万元 and
100,000.00元, 010-6235 8888 and 01062358888."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_DIGITS = {
    character: digit for digit, forms in enumerate("〇零○ 一 二两 三 四 五 六 七 八 九".split()) for character in forms
}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_LARGE = {"万": 10**4, "亿": 10**8}
_FORMAL = str.maketrans("壹贰叁肆伍陆柒捌玖拾佰仟", "一二三四五六七八九十百千")
"""As sums of money are written, so that nobody changes them."""
_HAN = "".join([*_DIGITS, *_UNITS, *_LARGE])
_COUNTED = "条章节款项页年月日号天元角分个人次岁楼层级届期卷回集名位倍时点秒周只种篇段部"
"""A single character is a number before one of these, or behind 第; elsewhere it is mostly a part of a word."""
_NUMBER = re.compile(
    r"(?P<formal>[壹贰叁肆伍陆柒捌玖拾][壹贰叁肆伍陆柒捌玖拾佰仟万亿零]{1,15})"
    rf"|(?P<han>[{_HAN}]{{2,16}}|(?<=第)[{_HAN}]|[{_HAN}](?=[{_COUNTED}]))"
    r"|(?<!\d)(?<!\d[.,])(?P<whole>\d{1,3}(?:,\d{3})+|\d{1,16})(?:\.(?P<part>\d{1,16}))?(?!\d|[.,]\d)(?P<unit>[百千万亿])?"
    r"|(?P<digits>(?<!\d)\d{1,16}(?!\d))"
)
_GROUPS = re.compile(r"(?<!\d)(?<!\d[.,-])\d{2,4}(?:[- ]\d{2,4}){1,3}(?!\d|[.,-]\d)")
"""Of a number of a telephone or a card, or a date."""


class Number(NamedTuple):
    begin: int
    end: int
    terms: tuple[str, ...]
    """In digits with the character of Han behind it, as "3条"; and by itself if it is not written in digits."""


def found(text: str) -> Iterator[Number]:
    """Those of a normalised text."""
    for match in _NUMBER.finditer(text):
        number, otherwise = _read(match)
        behind = text[match.end() : match.end() + 1]
        if number is not None:
            counts = number.isdigit() and "\u4e00" <= behind <= "\u9fff" and behind not in _HAN
            terms = [number] * otherwise + [(number.lstrip("0") or "0") + behind] * counts
            yield Number(match.start(), match.end(), tuple(terms))


def numbers(text: str) -> list[str]:
    """The terms of all of them."""
    groups = ("".join(filter(str.isdigit, match[0])) for match in _GROUPS.finditer(text))
    return [term for number in found(text) for term in number.terms] + [group for group in groups if len(group) > 6]


def _read(match: re.Match[str]) -> tuple[str | None, bool]:
    """In plain digits, and whether it is written otherwise."""
    if match["digits"]:
        return match["digits"], False
    if not match["whole"]:
        return _value((match["han"] or match["formal"]).translate(_FORMAL)), True
    whole, part = match["whole"].replace(",", ""), (match["part"] or "").rstrip("0")
    if match["unit"]:
        zeros = len(str((_UNITS | _LARGE)[match["unit"]])) - 1
        whole, part = (whole + part[:zeros].ljust(zeros, "0")).lstrip("0") or "0", part[zeros:]
    number = whole + (f".{part}" if part else "")
    return number, number != match[0]


def _value(written: str) -> str | None:
    """一百零五 as 105, 二〇二四 as 2024; None for units alone, as in 千万."""
    if all(character in _DIGITS for character in written):
        return "".join(str(_DIGITS[character]) for character in written)
    if not any(character in _DIGITS or character == "十" for character in written):
        return None
    total = part = digit = 0
    for character in written:
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif character in _UNITS:
            part += (digit or 1) * _UNITS[character]
            digit = 0
        else:
            large, section = _LARGE[character], part + digit
            total = (total + section) * large if 0 < total < large else total + section * large
            part = digit = 0
    return str(total + part + digit)
