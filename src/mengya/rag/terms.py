"""Text as it is searched: normalised, with a map back to the original, and cut into terms of which none is lost."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from operator import add
from typing import Any, NamedTuple

from mengya.errors import UserError
from mengya.rag.characters import fold_radicals

_INSTALL = "searching documents needs rjieba and OpenCC; install them: pip install 'mengya[documents]'"
_DENSE = "々〆〇\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Scripts without spaces: Han and kana."""
_HYPHENED = (
    r"(?<![a-z0-9-])(?=[0-9-]*[a-z])[a-z0-9]+(?:[-\u2010][a-z0-9]+){1,3}(?![a-z0-9+#%-])"  # not slugs of addresses
)
_RUNS = re.compile(
    rf"([{_DENSE}]+)|(?P<hyphened>{_HYPHENED})|(?P<word>(?:(?![{_DENSE}])[^\W_])+)(?P<mark>[+#%]*)"
    r"|(?P<symbol>[^\x00-\x7f\w\s])"
)
"""A run of such a script; words that hyphens join; a word of another script, and perhaps what makes a name of it, as in
C++; a symbol."""
_MIXED = re.compile(r"[^\W\d_]+|\d+")
_PLURAL = re.compile("(?:(?<=x)|(?<=ss)|(?<=zz)|(?<=sh)|(?<=[tnr]ch))es$|(?<=[^aeiou])(?:ies|y)$|(?<![sui])s$")
"""And y, as it stands for ies."""
_SPREAD = re.compile(rf"(?<![{_DENSE}])[{_DENSE}](?:[ \u3000\xa0]{{1,8}}[{_DENSE}])+(?![{_DENSE}])")
"""Characters of a title that are set apart, as in 合 同 书."""
_WRAPPED = re.compile(rf"(?<=[^\n]{{15}}[{_DENSE}])[ \t]*\n[ \t\u3000]*(?=[{_DENSE}])")
"""The end of a line that is full, in the middle of a sentence: perhaps of a word."""
_GAP = re.compile(r"[ \u3000\xa0]+")
_UNSEEN = re.compile("[\u00ad\u180e\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]+")
"""Where a word may be cut, and which form of a character is meant."""
_QUESTION = frozenset(
    "什么 是什么 怎么 怎么办 怎么做 怎样 怎么样 为什么 为何 为 如何 多少 几 几个 几天 几年 几月 几岁 "
    "几次 几点 几人 几条 "
    "几章 几页 几种 几项 几位 哪 哪个 哪些 哪里 哪儿 哪一 哪位 谁 何 何时 是否 是不是 "
    "有没有 请 请问 请教 告诉 吗 呢 吧 呀 啊 的 了 是 在 和 与 及 或 有 被 把 对 从 到 于 以 之 其 这 那 这个 那个 "
    "这些 那些 它 它们 他 她 我 你 您 我们 你们 他们 会 能 可以 要 应 应该 都 也 还 就 而 但 并 等 "
    "a an the of in on at to for from by with and or is are was were be been do does did has have had can could will "
    "would should what which who whom whose when where why how many much it its this that these those i you he she we "
    "they me my your please tell".split()
)
"""Words that nearly every question has, whatever it asks for."""
_COMMON = frozenset(
    "年 月 日 个 位 种 名 次 人 中 上 下 里 内 后 前 时 时候 什么时候 一 一个 一种 一次 哪一年 哪一个 哪种 何种 何人 "
    "由 为了 因为 因此 由于 作为 成为 不 没 没有 不是 只 最 更 很 大 小 多 少 某 些 该 此 两 二 三 四 五 六 七 八 九 "
    "十 主要 包括 通常 目前 现在 当时 曾 曾经 已 已经 将 所 给 让 使 来 去 出 进行 使用 认为 称为 叫 叫做 做 如何 甚么 "
    "一下 第一 第二 第三 第一个 并且 或者 以及 其中 之一 之后 之前 以后 以前 同时 还是 根据 关于 提到 提及 文中 "
    "there about into than then also some any all each most more other such between during after before not no so if "
    "as there's say says said mentioned give short brief according".split()
)
"""Words that stand in texts of any kind: that a text has them tells nothing of what it is about."""


class Normal(NamedTuple):
    """Width, case, radicals and traditional characters made equal."""

    text: str
    starts: Sequence[int]
    """Of each of its characters and of its end: where that begins in the original."""

    def original(self, begin: int, end: int) -> tuple[int, int]:
        """Where in the original the characters from `begin` to `end` came from."""
        if begin >= end:
            return self.starts[begin], self.starts[begin]
        after = next(i for i in range(end, len(self.starts)) if self.starts[i] > self.starts[end - 1])
        return self.starts[begin], self.starts[after]


class Term(NamedTuple):
    """Something to be searched for."""

    text: str
    begin: int
    """In the normalised text."""
    end: int
    whole: bool = True
    """A word; else two characters that stand beside each other, or one."""


class _Forms(dict):
    """Code point -> its form of compatibility, in small letters; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        accent = 0x300 <= code <= 0x36F  # which belongs to the character before it: this one is in no text that is done
        form = self[code] = "\u0340" if accent else _form(chr(code))
        return form


_FORMS = _Forms()


def normal(text: str) -> Normal:
    """Never fails on any text; the map is exact where a character becomes several (㎏) or several become one. What is
    not seen is left out, and so are spaces inside of words, where they can be told."""
    gaps = [*_UNSEEN.finditer(text), *_WRAPPED.finditer(text)]
    gaps += [gap for spread in _SPREAD.finditer(text) for gap in _GAP.finditer(text, *spread.span())]
    if not gaps:
        return _normal(text)
    gone = {place for gap in gaps for place in range(*gap.span())}
    kept = [place for place in range(len(text)) if place not in gone]
    made = _normal("".join(text[place] for place in kept))
    kept.append(len(text))
    return Normal(made.text, [kept[place] for place in made.starts])


def _normal(text: str) -> Normal:
    plain = text.translate(_FORMS)
    if len(plain) == len(text) and unicodedata.is_normalized("NFKC", plain):
        return Normal(_simplified(plain), range(len(text) + 1))
    parts: list[str] = []
    starts: list[int] = []
    begin = 0
    while begin < len(text):
        end = begin + 1
        while end < len(text) and _joins(text[end]):
            end += 1
        part = _form(text[begin:end])
        parts.append(part)
        starts += [begin] * len(part)
        begin = end
    return Normal(_simplified("".join(parts)), [*starts, len(text)])


def _form(text: str) -> str:
    text = fold_radicals(text).encode("utf-8", "replace").decode()  # halves of characters become question marks
    form = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if form.isascii():
        return form
    parts = unicodedata.normalize("NFD", form)
    if parts[0].isascii():  # nobody types the accents of Latin letters
        return "".join(part for part in parts if not "\u0300" <= part <= "\u036f")
    return form


def _joins(character: str) -> bool:
    """Whether it becomes one character with the one before: accents, marks of kana, jamo."""
    return (
        unicodedata.combining(character) != 0 or "\u1160" <= character <= "\u11ff" or "\uff9e" <= character <= "\uff9f"
    )


def _simplified(text: str) -> str:
    """As many characters as before: those whose simplified form is longer stay."""
    found = _opencc().convert(text)
    if len(found) == len(text):
        return found
    single = (_opencc().convert(character) for character in text)
    return "".join(new if len(new) == 1 else old for old, new in zip(text, single, strict=True))


def scripts(text: str) -> set[str]:
    """A text as it is, in simplified and in traditional characters."""
    return {text, _opencc().convert(text), _opencc("s2t").convert(text)}


@functools.cache
def _opencc(direction: str = "t2s") -> Any:
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise UserError(_INSTALL) from error
    return OpenCC(direction)


@functools.cache
def _segmenter() -> Any:
    try:
        import rjieba
    except ImportError as error:
        raise UserError(_INSTALL) from error
    return rjieba


def words(text: str) -> list[str]:
    """All of a text, cut into words and marks."""
    return list(_segmenter().cut(text))


def tagged(text: str) -> list[tuple[str, str, bool]]:
    """Of a normalised text: (word, its part of speech as jieba has it, whether the dictionary has it)."""
    segmenter = _segmenter()
    return [(word, tag, segmenter.has_word(word)) for word, tag in segmenter.tag(text)]


def terms_of(text: str) -> list[Term]:
    """The terms of a normalised text, in order: every word, and of scripts without spaces every two neighbours and the
    last character of each run, so that any part of the text is found, however it was cut."""
    cut = _segmenter().cut
    found: list[Term] = []
    for match in _RUNS.finditer(text):
        if run := match[1]:
            begin = place = match.start()
            for word in cut(run):
                found.append(Term(word, place, place + len(word)))
                place += len(word)
            found += [Term(pair, begin + i, begin + i + len(pair), False) for i, pair in enumerate(_pairs(run))]
        else:
            found += _others(match)
    return found


def searched(text: str) -> tuple[str, str]:
    """The words of a normalised text and its pairs, each with spaces between: what `terms_of` gives, sooner."""
    cut = _segmenter().cut
    words: list[str] = []
    pairs: list[str] = []
    for match in _RUNS.finditer(text):
        if run := match[1]:
            words += cut(run)
            pairs += _pairs(run)
        else:
            words += [term.text for term in _others(match)]
    return " ".join(words), " ".join(pairs)


def _pairs(run: str) -> list[str]:
    return [*map(add, run, run[1:]), run[-1]]


def _others(match: re.Match[str]) -> list[Term]:
    """Of a script with spaces, or a symbol. Words that hyphens join are one word as well: wi-fi is wifi."""
    begin, end = match.span()
    if hyphened := match["hyphened"]:
        parts = [term for one in re.finditer("[a-z0-9]+", hyphened) for term in _word(one[0], begin + one.start())]
        return [*parts, Term(re.sub("[-\u2010]", "", hyphened), begin, end)]
    if word := match["word"]:
        return _word(word, begin) + ([Term(word + match["mark"], begin, end)] if match["mark"] else [])
    symbol = match["symbol"]
    return [Term(symbol, begin, end)] if unicodedata.category(symbol)[0] == "S" else []


def _word(word: str, begin: int) -> list[Term]:
    """A word without its plural's s, and its letters and digits by themselves."""
    parts = list(_MIXED.finditer(word))
    whole = [Term(_singular(word), begin, begin + len(word))]
    if len(parts) < 2:
        return whole
    return whole + [Term(_singular(part[0]), begin + part.start(), begin + part.end()) for part in parts]


def _singular(word: str) -> str:
    if len(word) < 4 or not word.isascii() or is_common(word):
        return word
    return _PLURAL.sub("", word)


def is_common(text: str) -> bool:
    """Whether a word stands in texts of any kind."""
    return text in _COMMON or text in _QUESTION


def asks(text: str) -> bool:
    """Whether a word says that something is asked, but not what."""
    return text in _QUESTION
