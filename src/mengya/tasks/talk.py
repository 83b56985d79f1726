"""Questions that people ask first, graded by the kind of the answer: a name for who it is, a story for a story.

No wording is demanded. An answer of another kind is wrong, however well it is said.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from mengya.tasks.task import Question, Task, Words, check_text, short

_SENTENCE = re.compile(r"[。！？!?]|\.(?=\s|$|[”\"])")
_IGNORANCE = (
    r"不知道|不清楚|不了解|不认识|不太懂|没听说过|没有听说过|没听过|没有学过|没学过|"
    r"(do not|don't|did not|didn't) know|(have not|haven't|never) heard|not sure"
)
_FAREWELL = r"再见|拜拜|下次|明天见|晚安|\bbye\b|goodbye|see you|good night|take care"
_WELCOME = r"不客气|不用谢|不谢|别客气|应该的|welcome|my pleasure|no problem|anytime"
_GREETING = (
    r"你好|您好|大家好|嗨|哈喽|(早上|上午|中午|下午|晚上)好|\b(hello|hi|hey)\b|nice to meet|good (morning|evening|day)"
)
_COMFORT = r"别难过|没关系|会好|会更好|别担心|别灰心|休息|说一说|心情|加油|sorry|do not worry|don't worry|better"
_JOY = r"太好了|真好|高兴|开心|祝贺|恭喜|真棒|不错|生日快乐"
_MODESTY = r"谢谢|夸奖|过奖|努力|学习|不多"
_ABILITY = (
    r"(我会|我能|可以|\bI can\b|you can).*(回答|问|算|加法|故事|写|翻译|聊|answer|ask|add|stor|write|help|translate)"
)
_FEELING = r"\b(fine|well|good|great|okay|ok)\b"
_NAME = r"萌芽(?!项目)|mengya(?! project)"
_MAKER = r"萌芽项目|mengya project"
_MODEL = r"模型|程序|人工智能|机器人|language model|program|\bAI\b"


def _says(pattern: str, *without: str) -> Callable[[str], bool]:
    """Whether a text has what the pattern stands for, and nothing of the others."""
    wanted, unwanted = (re.compile(p, re.IGNORECASE) for p in (pattern, "|".join(without) or r"(?!)"))
    return lambda text: bool(wanted.search(text)) and not unwanted.search(text)


def _length(text: str) -> int:
    """Letters and Han of a text: an English word is about as long as two Han."""
    return len(re.findall(r"[\u3400-\u9fff]", text)) + 2 * len(re.findall(r"[A-Za-z]+", text))


def _tells(text: str) -> bool:
    """Whether a text could be a story or a joke by its looks: it does not speak of itself, nor send one away."""
    other = (
        f"我是萌芽|我叫萌芽|小模型|语言模型|language model|{_ABILITY}|^.{{0,12}}({_IGNORANCE}|{_FAREWELL}|{_GREETING})"
    )
    return not re.search(other, text, re.IGNORECASE)


def _story(text: str) -> bool:
    return _tells(text) and _length(text) >= 50 and len(_SENTENCE.findall(text)) >= 3


def _joke(text: str) -> bool:
    """Somebody says something, or a riddle is asked."""
    return (
        _tells(text)
        and 16 <= _length(text) <= 140
        and bool(re.search(r"[：:“\"「]|说|said|asked|why|为什么", text, re.I))
    )


def _short(says: Callable[[str], bool]) -> Callable[[str], bool]:
    """What is said in reply to a remark; a story may hold the same words."""
    return lambda text: says(text) and _length(text) <= 100


KINDS: dict[str, Callable[[str], bool]] = {
    "name": _says(_NAME),
    "maker": _says(_MAKER),
    "model": _says(_MODEL, r"我是(一个)?(真人|人类)", r"I am (a human|human|a person)"),
    "greeting": _says(_GREETING, _FAREWELL.replace("|下次", "")),
    "thanks": _short(_says(_WELCOME)),
    "farewell": _says(_FAREWELL),
    "modesty": _short(_says(_MODESTY, _FAREWELL)),
    "comfort": _short(_says(_COMFORT, r"祝贺|恭喜")),
    "joy": _short(_says(_JOY, r"别难过|没关系", _WELCOME, _FAREWELL)),
    "ability": _says(_ABILITY, _IGNORANCE),
    "ignorance": _short(_says(_IGNORANCE)),
    "feeling": _short(_says(_FEELING, _FAREWELL)),
    "talk": _short(_says(r"\b(I|me|my)\b", _FAREWELL, _IGNORANCE, _WELCOME, "project made")),
    "story": _story,
    "joke": _joke,
}
"""Kind of answer -> whether a text is one."""


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text))


def check(row: Mapping[str, Any]) -> None:
    """A row has an `expect`, a kind of answer, or a list of texts one of which the response must hold, `accept`."""
    kind, accept = row.get("expect"), row.get("accept")
    if accept is not None:
        if not isinstance(accept, list) or not accept or not all(isinstance(t, str) and _letters(t) for t in accept):
            raise ValueError(f"accept={short(accept)} must be a list of strings, none of which is punctuation alone")
        if kind is not None:
            raise ValueError(f"expect={short(kind)} and accept cannot both be given; remove one")
    elif kind not in KINDS:
        raise ValueError(f"expect={short(kind)} is not a kind of answer; use one of {', '.join(KINDS)}, or give accept")
    if "answer" in row:
        check_text(row, "answer")


def grade(question: Question, completion: str) -> bool:
    """Whether the completion is of the kind that is expected, or holds one of `accept`, whatever the punctuation."""
    if "accept" in question.row:
        text = _letters(completion)
        return any(_letters(wanted) in text for wanted in question.row["accept"])
    return KINDS[question.row["expect"]](unicodedata.normalize("NFKC", completion).replace(",", "，"))


BY_KIND = Words("the response must be of the right kind, in any words.", "回答须属于正确的类型，说法不限。")
ABOUT_ITSELF = Words(
    "the response must say the right thing about itself, in any words.", "回答须说对自己的情况，说法不限。"
)
TASKS = (
    Task("identity", "identity_accuracy", Words("Who it is", "自我认识"), ABOUT_ITSELF, check, grade),
    Task("first", "first_accuracy", Words("First questions", "最先问的话"), BY_KIND, check, grade),
)
