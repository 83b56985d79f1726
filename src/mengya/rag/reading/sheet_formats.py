"""Numbers as Excel shows them: dates of both epochs, Chinese formats, percents, currencies."""

import math
import operator
import re
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal
from fractions import Fraction
from functools import lru_cache

from mengya.rag.reading.numerals import numeral

_BUILT_IN = {
    **{1: "0", 2: "0.00", 3: "#,##0", 4: "#,##0.00", 9: "0%", 10: "0.00%", 11: "0.00E+00"},
    **{12: "# ?/?", 13: "# ??/??"},
    **{14: "yyyy-mm-dd", 15: "d-mmm-yy", 16: "d-mmm", 17: "mmm-yy", 18: "h:mm AM/PM", 19: "h:mm:ss AM/PM"},
    **{20: "h:mm", 21: "h:mm:ss", 22: "yyyy-mm-dd h:mm", 45: "mm:ss", 46: "[h]:mm:ss", 47: "mm:ss.0", 48: "##0.0E+0"},
    **{5: "#,##0", 6: "#,##0", 7: "#,##0.00", 8: "#,##0.00", **dict.fromkeys((37, 38, 41, 42), "#,##0")},
    **dict.fromkeys((39, 40, 43, 44), "#,##0.00"),
    # What Excel means by these in Chinese; files name them by their numbers alone.
    **dict.fromkeys((27, 36, 50, 52, 57), "yyyy年m月"),
    **dict.fromkeys((28, 29, 51, 53, 54, 58), "m月d日"),
    **{30: "m-d-yy", 31: "yyyy年m月d日", 32: "h时mm分", 33: "h时mm分ss秒"},
    **dict.fromkeys((34, 55), "上午/下午h时mm分"),
    **dict.fromkeys((35, 56), "上午/下午h时mm分ss秒"),
}
_TOKEN = re.compile(
    r'"([^"]*)"|\\(.)|!(.)|_.|\*.|\[\$([^\]-]*)[^\]]*\]|(\[(?:h+|m+|s+)\])|\[[^\]]*\]'
    r"|(AM/PM|A/P|上午/下午)|(y+|m+|d+|h+|s+|e+(?![+-])|a{3,4})|(\.0+)|(.)",
    re.IGNORECASE | re.DOTALL,
)
_CONDITION = re.compile(r"\[(<=|>=|<>|<|>|=)(-?\d+(?:\.\d+)?)\]")
_COMPARED = {
    **{"<=": operator.le, ">=": operator.ge, "<>": operator.ne},
    **{"<": operator.lt, ">": operator.gt, "=": operator.eq},
}
_FRACTION = re.compile(
    r"(?:(?P<whole>[0#?]+)[ \ue000-\uf8ff]+)?[0#?]+ */ *(?:(?P<named>[1-9]\d{0,5})|(?P<below>[0#?]{1,5}))"
)
_LONGEST = 255
"""Characters of a format, which Excel does not allow to be longer."""
_DIGITS = Context(prec=500)
"""More than a number of a hundred digits and ten percent signs in the longest format can have."""
_MONTHS = "January February March April May June July August September October November December".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def shown(text: str, number_format: int, code: str | None, from_1904: bool) -> str:
    """The number `text` of a cell in the format of that id, or of its own `code`."""
    try:
        number = float(text)
    except ValueError:
        return text
    code = (code if code is not None else _BUILT_IN.get(number_format, "")).replace("G/通用格式", "General")
    if not math.isfinite(number) or abs(number) > 1e100 or len(code) > _LONGEST or code.count("%") > 9:
        return text
    sections = _sections(code)
    section, number, negative = _chosen(number, sections)
    if _is_date(sections[0]):
        return _in_han(_date(number, sections[0], from_1904), sections[0]) if not negative else _general(text)
    result = _number(number, section)
    return _general(text) if result is None else "-" * negative + _in_han(result, section)


def _in_han(shown: str, code: str) -> str:
    """With its numbers in characters of Han where the format says so: 一百二十三, 壹佰贰拾叁, years by digits."""
    script = re.search(r"\[DBNum([12])\]", code, re.IGNORECASE)
    if script is None or "," in shown:
        return shown
    form, years = "chineseCounting", _is_date(code)
    if script[1] == "2":
        form, years = "chineseLegalSimplified", False

    def written(found: re.Match[str]) -> str:
        digits = years and len(found[1]) == 4
        part = "".join(numeral(int(one), form) for one in found[2] or "")
        return numeral(int(found[1]), "ideographDigital" if digits else form) + (f".{part}" if part else "")

    return re.sub(r"(\d+)(?:\.(\d+))?", written, shown)


def _chosen(number: float, sections: tuple[str, ...]) -> tuple[str, float, bool]:
    """(the part of a format that is meant for a number, the number to be shown in it, whether a minus is added)"""
    if any(map(_CONDITION.search, sections)):
        fits = (one for i, one in enumerate(sections) if _holds(number, one, i, len(sections)))
        return next(fits, "General"), number, False
    if number < 0 and len(sections) > 1:
        return sections[1], -number, "(" not in sections[1] and "-" not in sections[1]
    return sections[2] if number == 0 and len(sections) > 2 else sections[0], number, False


def _holds(number: float, section: str, index: int, count: int) -> bool:
    """Whether a number is shown in a section: without a condition the second of three is for those below zero."""
    if condition := _CONDITION.search(section):
        return bool(_COMPARED[condition[1]](number, float(condition[2])))
    return number < 0 if index == 1 and count > 2 else True


@lru_cache(maxsize=256)
def _sections(code: str) -> tuple[str, ...]:
    parts = re.findall(r'(?:"[^"]*"|\\.|\[[^\]]*\]|[^;])+', code)
    return tuple(parts) or ("",)


@lru_cache(maxsize=256)
def _is_date(code: str) -> bool:
    if code.strip().lower() in ("general", "g/通用格式", ""):
        return False
    return any(
        match[5] or match[6] or (match[7] and match[7].lower()[0] in "ymdhsa") for match in _TOKEN.finditer(code)
    )


def _general(text: str) -> str:
    number = float(text)
    if abs(number) < 1e18 and number == int(number):
        return str(int(number)) if "e" in text.lower() or "." in text else text
    return f"{number:.15g}"


# --- dates ------------------------------------------------------------------------------------------------------------


def _date(serial: float, code: str, from_1904: bool) -> str:
    if not 0 <= serial < 2_958_466:
        return f"{serial:.15g}"
    # Excel believes in a 29 February 1900, the day 60.
    base = datetime(1904, 1, 1) if from_1904 else datetime(1899, 12, 30) + timedelta(days=serial < 60)
    precise = re.search(r"s\.0", code, re.IGNORECASE)
    seconds = round(serial * 86_400, 3) if precise else round(serial * 86_400)
    return _written(base + timedelta(seconds=seconds), seconds, code)


def _written(moment: datetime, seconds: float, code: str) -> str:
    tokens = list(_TOKEN.finditer(code))
    units = [(match[7] or match[5] or "").lower().strip("[]") for match in tokens]
    noon = any(match[6] for match in tokens)
    parts: list[str] = []
    for i, match in enumerate(tokens):
        before = next((unit[0] for unit in reversed(units[:i]) if unit), "")
        after = next((unit[0] for unit in units[i + 1 :] if unit), "")
        if match[5]:
            size = {"h": 3600, "m": 60, "s": 1}[units[i][0]]
            parts.append(f"{int(seconds // size):0{len(units[i])}}")
        elif match[6]:
            names = ("上午", "下午") if match[6] == "上午/下午" else ("AM", "PM")
            parts.append(names[moment.hour >= 12])
        elif units[i][:1] == "m" and len(units[i]) < 3 and (before == "h" or after == "s"):
            parts.append(f"{moment.minute:0{len(units[i])}}")
        elif units[i]:
            parts.append(_unit(moment, units[i], noon))
        elif match[8]:
            parts.append(f".{moment.microsecond // 1000:03}"[: len(match[8])])
        else:
            parts.append(match[1] or match[2] or match[3] or match[4] or match[9] or "")
    return "".join(parts).strip().removesuffix(";@")


def _unit(moment: datetime, unit: str, noon: bool) -> str:
    hour = (moment.hour - 1) % 12 + 1 if noon else moment.hour
    width = min(len(unit), 2)
    numbers = {"d": moment.day, "m": moment.month, "h": hour, "s": moment.second}
    if unit[0] in "ye":
        return str(moment.year)  # always whole: 25 might be a day
    if unit[0] == "a":
        return ("周" if len(unit) == 3 else "星期") + "一二三四五六日"[moment.weekday()]
    if len(unit) > 2 and unit[0] in "dm":
        name = _DAYS[moment.weekday()] if unit[0] == "d" else _MONTHS[moment.month - 1]
        return name[:3] if len(unit) == 3 else name
    return f"{numbers[unit[0]]:0{width}}"


# --- other numbers ----------------------------------------------------------------------------------------------------


def _number(number: float, code: str) -> str | None:
    """None: the format says nothing of its own, or something rare."""
    literal: list[str] = []
    plain = "".join(_mark(match, literal) for match in _TOKEN.finditer(code))
    if part := _FRACTION.search(plain):
        return _filled(plain[: part.start()] + _fraction(number, part) + plain[part.end() :], literal).strip()
    found = re.search(r"[0#?][0#?,.]*", plain)
    if "General" in plain:
        return _filled(plain, literal).replace("General", _general(repr(number)))
    spread = re.search(r"[0#?][0#?,]*(?:[^0#?,.%E]+[0#?][0#?,]*)+(?!\.)", plain)
    if spread:
        placed = _placed(number, spread[0])
        return _filled(plain[: spread.start()] + placed + plain[spread.end() :], literal).strip()
    if not found:
        return _filled(plain, literal).strip() if literal and "@" not in plain else None
    digits = found[0]
    whole, _, fraction = digits.partition(".")
    scale = len(digits) - len(digits.rstrip(","))
    number = number * 100 ** plain.count("%") / 1000**scale
    fraction = fraction.rstrip(",")
    exponent = re.search(r"E[+-]0+", plain)
    if exponent:
        text = f"{number:.{len(fraction)}E}"
    else:
        exact = Decimal(f"{number:.15g}").quantize(Decimal(1).scaleb(-len(fraction)), ROUND_HALF_UP, _DIGITS)
        text = f"{exact:{',' if ',' in whole.rstrip(',') else ''}f}"
        for mark in reversed(fraction):  # a # shows no zero
            if mark != "#" or not text.endswith("0"):
                break
            text = text[:-1]
        text = text.rstrip(".") if fraction else text
        least = whole.count("0")
        text = ("-" if number < 0 else "") + text.lstrip("-").zfill(least)
        if number == 0 and not least and not fraction and literal:
            text = ""  # as "-"?? is a dash alone
    rest = plain[found.end() :].replace(exponent[0], "", 1) if exponent else plain[found.end() :]
    return _filled(plain[: found.start()] + text + rest, literal).strip()


def _fraction(number: float, places: re.Match[str]) -> str:
    """1 1/2, or 3/2 where the format has no place for what is whole; of a denominator that the format names, or of the
    nearest one with as many digits as it has places."""
    exact = Fraction(str(abs(number)))
    if places["named"]:
        below = int(places["named"])
        above = round(exact * below)
    else:
        above, below = exact.limit_denominator(10 ** len(places["below"]) - 1).as_integer_ratio()
    sign = "-" if number < 0 and above else ""
    if not places["whole"]:
        return f"{sign}{above}/{below}"
    whole, above = divmod(above, below)
    if not above:
        return f"{sign}{whole}"
    return f"{sign}{whole} {above}/{below}" if whole else f"{sign}{above}/{below}"


def _placed(number: float, places: str) -> str:
    """A whole number in places with other characters between them, as 000-0000, or 0!.0, which shows ten thousands."""
    scale = len(places) - len(places.rstrip(","))
    digits = f"{abs(number) / 1000**scale:.0f}"
    parts: list[str] = []
    first = next(i for i, mark in enumerate(places) if mark in "0#?")
    for i, mark in reversed(list(enumerate(places.rstrip(",")))):
        if mark not in "0#?":
            parts.append("" if mark == "," else mark)
            continue
        parts.append((digits if i == first else digits[-1:]) or ("0" if mark == "0" else ""))
        digits = digits[:-1]
    return "-" * (number < 0) + "".join(reversed(parts))


def _mark(match: re.Match, literal: list[str]) -> str:
    """A part of a format with its literal text put aside, so that digits in it are not taken for places of digits."""
    text = match[1] or match[2] or match[3] or match[4]
    if text:
        literal.append(text)
        return chr(0xE000 + len(literal) - 1)
    return match[8] or match[9] or match[7] or match[6] or ""


def _filled(text: str, literal: list[str]) -> str:
    return "".join(literal[ord(c) - 0xE000] if "\ue000" <= c <= "\uf8ff" else c for c in text)
