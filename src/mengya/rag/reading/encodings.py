"""The text in bytes of an unknown encoding: UTF-8, UTF-16, GB18030 or Big5, those of Japan, Korea and Russia, and
Western text."""

import codecs
import re

from mengya.errors import UserError
from mengya.rag.reading.refused import READ

_MARKS = (  # longest first: the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_COMMON = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多"
    "经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性"
    "知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次"
    "度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活更别打女变四神总何电数安少报才结反受目太量再感建务"
    "這個們來為國說時會對發後裡裏過還進樣開與從現點無長機問間見頭關實動學經麼當沒體應兩東聲給話氣處條題業變電數場員論統區達馬師"
    "難記設許書報結讓識權義於種產將內軍戰門兒幾認係聽車風語請買賣錢級組織總號歲運邊遠選適"
)
"""What most of running Chinese text consists of, simplified and traditional."""
_KANA, _HANGUL, _CYRILLIC = "\u3040-\u30ff", "\uac00-\ud7a3", "а-яёА-ЯЁ"
_FOREIGN = {
    "cp932": (_KANA, _KANA),
    "euc_jp": (_KANA, _KANA),
    "cp949": (
        _HANGUL,
        "이다는에의을를가고하지은로한도서기사어자리나인그시아대해수과일정있으전부여스주라보원제동게만들",
    ),
    "cp1251": (_CYRILLIC, "оеаинтсрвлОЕАИНТСРВЛ"),
    "koi8_r": (_CYRILLIC, "оеаинтсрвлОЕАИНТСРВЛ"),
}
"""Encodings of other languages -> (letters, the common ones). Text in Chinese that is decoded so has the others."""
_MIXED_CASE = re.compile("[а-яё][А-ЯЁ]")
_PUNCTUATION = re.compile("[\u2014\u2018-\u201d\u2026\u3000-\u3011\uff01-\uff5e·]")
_LATIN = ("iso-8859-1", "iso8859-1", "latin1", "latin-1", "us-ascii", "ascii")
_CONTROLS = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]")
_BINARY = f"this is binary data, neither text nor a format that is read here; convert it to PDF or text: {READ}"
_SAMPLE = 200_000
"""Bytes that decide. An encoding does not change within a file."""
_ENOUGH = 0.3
"""The score that text has at least in its own encoding; in another it has less."""
_MORE = 0.15
"""By which another language must be likelier than Chinese."""


def decode(data: bytes) -> tuple[str, tuple[str, ...]]:
    """The text, and notes for the user. Tried in this order: a byte order mark, UTF-16 by its zero bytes, strict UTF-8,
    then what gives the likelier text of GB18030 (which accepts nearly any bytes), Big5, UTF-16 and `_FOREIGN`.
    UserError: it is no text."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _replaced(data[len(mark) :], encoding)
    head = data[:_SAMPLE]
    if head.count(0) * 200 <= len(head):
        try:
            return data.decode("utf-8"), ()
        except UnicodeDecodeError:
            if 0 not in head:
                return _by_lines(data) or _replaced(data, _likeliest(head))
    wide = _utf16(head)
    return _replaced(data, wide) if wide else _without_zeros(data)


def codec_of(name: str) -> str:
    """What browsers take for the encoding of that name: Western text has quotation marks that Latin-1 lacks."""
    plain = name.lower()
    return "cp1252" if plain in _LATIN else plain


def _by_lines(data: bytes) -> tuple[str, tuple[str, ...]] | None:
    """Of a text that was put together from several, of which some are UTF-8: each line in its own encoding."""
    lines = [(line, _is_utf8(line)) for line in data.splitlines(keepends=True)]
    modern, older = (b"".join(line for line, is_one in lines if is_one is wanted) for wanted in (True, False))
    if not older or _score(modern[:_SAMPLE], "utf-8") < _ENOUGH:
        return None
    encoding = _likeliest(older[:_SAMPLE])
    if encoding.startswith("utf"):
        return None
    text = "".join(line.decode("utf-8" if is_one else encoding, "replace") for line, is_one in lines)
    return text, (f"two encodings are mixed, utf-8 and {encoding}; each line was read in its own",)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _without_zeros(data: bytes) -> tuple[str, tuple[str, ...]]:
    """Of a text with zero bytes in it, as a write that was broken off leaves them, or fields of a fixed width.
    UserError: it is no text without them either."""
    kept = data.replace(b"\0", b"")
    head = kept[:_SAMPLE]
    if not kept or len(_CONTROLS.findall(head)) * 100 > len(head):
        raise UserError(_BINARY)
    notes: tuple[str, ...] = ()
    try:
        text = kept.decode("utf-8")
    except UnicodeDecodeError:
        encoding = _likeliest(head)
        if _score(head, encoding, ascii_too=True) < _ENOUGH:
            raise UserError(_BINARY) from None
        text, notes = _replaced(kept, encoding)
    return text, (*notes, f"{len(data) - len(kept):,} zero bytes were left out")


def _replaced(data: bytes, encoding: str) -> tuple[str, tuple[str, ...]]:
    text = data.decode(encoding, "replace")
    lost = text.count("\ufffd") - data.decode(encoding, "ignore").count("\ufffd")
    notes = (f"{lost} places could not be decoded as {encoding}",) if lost else ()
    return text, notes


def _utf16(head: bytes) -> str | None:
    """Which of both it is, of bytes with zeros, which text has in UTF-16; None: it is not."""
    little, big = (_score(head, encoding, ascii_too=True) for encoding in ("utf-16-le", "utf-16-be"))
    if max(little, big) < _ENOUGH:
        return None
    return "utf-16-le" if little >= big else "utf-16-be"


def _likeliest(head: bytes) -> str:
    utf8 = codecs.getincrementaldecoder("utf-8")("replace").decode(head)
    if utf8.count("\ufffd") * 2 < len(re.findall("[\u0800-\ufffc]", utf8)):
        return "utf-8"  # damaged in a few places
    scores = {encoding: _score(head, encoding) for encoding in ("gb18030", "big5hkscs", "utf-16-le", "utf-16-be")}
    best = max(scores, key=lambda encoding: scores[encoding])  # the first of equals
    foreign = {encoding: _foreign(head, encoding) for encoding in _FOREIGN}
    other = max(foreign, key=lambda encoding: foreign[encoding])
    if foreign[other] > max(scores[best] + _MORE, _ENOUGH) and not _looks_western(head):
        return other
    if scores[best] < _ENOUGH and _looks_western(head):
        return "cp1252"
    return best


def _score(head: bytes, encoding: str, ascii_too: bool = False) -> float:
    """How likely the text is as Chinese, or as English too, up to 1: the share of common characters, and half of those
    in the part of the character set that is sorted by use, not by radicals. Below 0 where much is no text."""
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    foreign = [character for character in text if character > "\x7f" or ascii_too]
    if not foreign:
        return -1.0
    points = 0.0
    for character in foreign:
        if character in _COMMON or _PUNCTUATION.match(character) or " " <= character < "\x7f" or character in "\r\n\t":
            points += 1
        elif character == "\ufffd" or "\ue000" <= character <= "\uf8ff" or character < " ":
            points -= 2
        elif _is_of_first_level(character, encoding):
            points += 0.5
    return points / len(foreign)


def _foreign(head: bytes, encoding: str) -> float:
    """How likely the text is as one of that language, up to 1; below 0 where some of it is no text."""
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    beyond = re.sub("[\x00-\x7f]", "", text)
    letters, common = (len(re.findall(f"[{kind}]", beyond)) for kind in _FOREIGN[encoding])
    if letters < 4 or letters * 4 <= len(beyond):
        return -1.0
    known = sum(bool(_PUNCTUATION.match(character)) or character in _COMMON for character in beyond)
    bad = len(re.findall("[\ufffd\x80-\x9f\uff61-\uff9f\ue000-\uf8ff]", beyond)) + len(_MIXED_CASE.findall(text))
    return (common + 0.3 * (letters - common) + known - 4 * bad) / len(beyond)


def _is_of_first_level(character: str, encoding: str) -> bool:
    if encoding.startswith("utf-16"):
        return any(_is_of_first_level(character, other) for other in ("gb18030", "big5hkscs"))
    code = character.encode(encoding, "ignore")
    if len(code) != 2:
        return False
    return 0xB0 <= code[0] <= 0xD7 and code[1] >= 0xA1 if encoding == "gb18030" else 0xA4 <= code[0] <= 0xC6


def _looks_western(head: bytes) -> bool:
    """Letters beyond ASCII stand alone among others."""
    high = re.findall(rb"[\x80-\xff]+", head)
    return sum(map(len, high)) * 3 < len(head) and sum(len(run) == 1 for run in high) * 10 >= len(high) * 8
