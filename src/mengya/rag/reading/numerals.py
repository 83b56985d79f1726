"""Numbers as Word writes them before a paragraph: 3, III, c, 三, 叁, ③, 丙."""

from collections.abc import Callable

_DIGITS = "〇一二三四五六七八九"
_FORMAL = {"simplified": ("零壹贰叁肆伍陆柒捌玖", "拾佰仟"), "traditional": ("零壹貳參肆伍陸柒捌玖", "拾佰仟")}
_STEMS, _BRANCHES = "甲乙丙丁戊己庚辛壬癸", "子丑寅卯辰巳午未申酉戌亥"
_ROMANS = tuple(
    zip((1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1), "M CM D CD C XC L XL X IX V IV I".split(), strict=True)
)


def numeral(number: int, form: str) -> str:
    """`form`: a value of Office's ST_NumberFormat; one that is not known gives plain digits."""
    return _FORMS.get(form, str)(number) if number >= 0 else str(number)


def counted(number: int, digits: str = "零一二三四五六七八九", units: str = "十百千") -> str:
    """一百零五; below 20 without the leading 一: 十五."""
    if number == 0:
        return digits[0]
    if number >= 10_000:
        high, low = divmod(number, 10_000)
        rest = (digits[0] if 0 < low < 1000 else "") + counted(low, digits, units) if low else ""
        return counted(high, digits, units) + "万" + rest
    text, zero = "", False
    for power in (3, 2, 1, 0):
        digit = number // 10**power % 10
        if digit:
            text += (digits[0] if zero and text else "") + digits[digit] + (units[power - 1] if power else "")
        zero = not digit
    return text[1:] if digits[1] == "一" and 10 <= number < 20 else text


def _roman(number: int) -> str:
    text = ""
    for size, letters in _ROMANS:
        text += letters * (number // size if number < 5000 else 0)
        number %= size
    return text or str(number)


def _letters(number: int) -> str:
    return chr(ord("a") + (number - 1) % 26) * ((number - 1) // 26 + 1) if 0 < number < 1000 else str(number)


def _circled(number: int) -> str:
    ranges = ((1, 20, 0x2460), (21, 35, 0x3251), (36, 50, 0x32B1))
    return next((chr(base + number - low) for low, high, base in ranges if low <= number <= high), str(number))


def _of(characters: str) -> Callable[[int], str]:
    return lambda number: characters[(number - 1) % len(characters)] if number else "0"


def _formal(script: str) -> Callable[[int], str]:
    return lambda number: counted(number, *_FORMAL[script])


def _digits(number: int) -> str:
    return "".join(_DIGITS[int(digit)] for digit in str(number))


_FORMS: dict[str, Callable[[int], str]] = {
    "none": lambda number: "",
    "bullet": lambda number: "",
    "decimalZero": lambda number: f"{number:02}",
    "upperRoman": _roman,
    "lowerRoman": lambda number: _roman(number).lower(),
    "upperLetter": lambda number: _letters(number).upper(),
    "lowerLetter": _letters,
    "decimalFullWidth": lambda number: "".join(chr(ord(digit) + 0xFEE0) for digit in str(number)),
    "decimalEnclosedCircle": _circled,
    "decimalEnclosedCircleChinese": _circled,
    "decimalEnclosedParen": lambda number: chr(0x2473 + number) if 1 <= number <= 20 else f"({number})",
    "decimalEnclosedFullstop": lambda number: chr(0x2487 + number) if 1 <= number <= 20 else f"{number}.",
    "ideographEnclosedCircle": lambda number: chr(0x327F + number) if 1 <= number <= 10 else str(number),
    "ideographTraditional": _of(_STEMS),
    "ideographZodiac": _of(_BRANCHES),
    "ideographZodiacTraditional": lambda number: _of(_STEMS)(number) + _of(_BRANCHES)(number),
    "chineseLegalSimplified": _formal("simplified"),
    "ideographLegalTraditional": _formal("traditional"),
    **dict.fromkeys("ideographDigital taiwaneseDigital japaneseDigitalTenThousand koreanDigital".split(), _digits),
    **dict.fromkeys("chineseCounting chineseCountingThousand japaneseCounting".split(), counted),
    **dict.fromkeys("taiwaneseCounting taiwaneseCountingThousand".split(), counted),
}
