"""Texts on which two tokenizers, or two ways to write a conversation, must agree."""

import random
import unicodedata
from collections.abc import Iterator

_PIECES = (
    "0 7 42 2026 1234567 3.14 １２３ Ⅷ ½ ² ٣ 第3章 a1b2 v2.0".split(),
    "春天 来了 小草从土里钻出来 你好 熊猫 吃竹子 的 漢字 𠮷野家 こんにちは カタカナ 한국어".split(),
    "the cat Hello WORLD don't I'LL we've it's l'été naïve straße Ångström HTTPServer snake_case ſ ǅ".split(),
    "мир שלום مرحبا สวัสดี नमस्ते Καλημέρα tiếng e\u0301 ä́".split(),
    "🙂 🌍 👨‍👩‍👧 👍🏽 🇨🇳 ❤️ ①".split(),
    '。 ， ！ ？ …… “引” 《书》 （一） . , ! ? ... -- () [] {"k":1} #$%&*@ a/b \\n `x` |~ <| |> < > \'\' "'.split(),
    (" ", "  ", "   ", "\t", "\u3000", "\u3000\u3000", "\u00a0", " \t ", "\u2009"),
    ("\n", "\n\n", "\r\n", "\n\n\n", " \n", "\n ", "\t\n", "。\n", "!\n\n", "\n    "),
    ("\u200b", "\ufeff", "\u0085", "\x0b", "\x7f", "\ue000", "\u2028"),
)


def lines(count: int = 2000, composed: bool = False) -> list[str]:
    """Always the same lines of digits, scripts, spaces, signs, emoji and ends of lines, mixed by chance.

    `composed`: in Unicode's form NFC, for tokenizers that bring text into it first.
    """
    chance = random.Random(0)
    out = ["", " ", "\n", "12345", "  两个空格  ", "don't I'LL", "\u3000全角"]
    while len(out) < count:
        kinds = [chance.choice(_PIECES) for _ in range(chance.randint(1, 12))]
        out.append(chance.choice(("", "", " ")).join(chance.choice(kind) for kind in kinds))
    return [unicodedata.normalize("NFC", line) if composed else line for line in out[:count]]


def talks(with_system: bool, with_tools: bool) -> Iterator[list[dict]]:
    """Eight conversations that end with a question, or with the result of a tool, for which an answer is due."""
    user, answer = {"role": "user", "content": "天是什么颜色？"}, {"role": "assistant", "content": "我叫萌芽。\n🌱"}
    system = [{"role": "system", "content": "Answer in one line.\n只用中文。"}] if with_system else []
    more = {"role": "user", "content": "What is 37+45?  Think twice."}
    yield [user]
    yield [*system, user]
    yield [user, answer, more]
    yield [*system, user, answer, more]
    yield [*system, more, {"role": "assistant", "content": "82"}, user, answer, more]
    yield [{"role": "user", "content": '{"k": [1, 2]} <b>"quoted"</b> \\ % {{ x }}'}]
    yield [user, answer, user, answer, user, answer, {"role": "user", "content": "再见"}]
    result = {"role": "tool", "content": "晴，21°C", "name": "weather"}
    yield [*system, user, answer, result] if with_tools else [*system, more, answer, user]
