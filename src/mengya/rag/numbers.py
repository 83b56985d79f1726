"""Numbers in texts, whichever way they are written: 第三条 and 第3条, 二〇二四年 and 2024年."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_DIGITS = {
    character: digit for digit, forms in enumerate("〇零○ 一 二两 三 四 五 六 七 八 九".split()) for character in forms
}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_LARGE = {"万": 10**4, "亿": 10**8}
_HAN = "".join([*_DIGITS, *_UNITS, *_LARGE])
_COUNTED = "条章节款项页年月日号天元角分个人次岁楼层级届期卷回集名位倍时点秒周只种篇段部"
"""A single character is a number before one of these, or behind 第; elsewhere it is mostly a part of a word."""
_NUMBER = re.compile(
    rf"(?P<han>[{_HAN}]{{2,16}}|(?<=第)[{_HAN}]|[{_HAN}](?=[{_COUNTED}]))|(?P<digits>(?<!\d)\d{{1,16}}(?!\d))"
)


class Number(NamedTuple):
    begin: int
    end: int
    terms: tuple[str, ...]
    """In digits with the character of Han behind it, as "3条"; and by itself if it is not written in digits."""


def found(text: str) -> Iterator[Number]:
    """Those of a normalised text."""
    for match in _NUMBER.finditer(text):
        number = match["digits"] or _value(match["han"])
        behind = text[match.end() : match.end() + 1]
        if number is not None:
            counts = "\u4e00" <= behind <= "\u9fff" and behind not in _HAN
            terms = [number] * bool(match["han"]) + [(number.lstrip("0") or "0") + behind] * counts
            yield Number(match.start(), match.end(), tuple(terms))


def numbers(text: str) -> list[str]:
    """The terms of all of them."""
    return [term for number in found(text) for term in number.terms]


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
