"""Sentences with their entities (people, places, organisations, …), and the conversation that each of them is."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mengya.data.cleaning import strip_controls
from mengya.data.fields import as_json

INSTRUCTIONS = (
    "找出句子里的人名、地名、组织等实体，按类别用 JSON 列出；没有就写 {}。",
    "List the names of people, places, organisations and so on in the sentence by kind, as JSON; {} if there are none.",
)
"""In Chinese and in English: before a sentence, which follows on the next line."""

_KINDS = (
    ("人名", "person", "PER PERS PERSON NR NAME PER.NAM"),
    ("地名", "place", "LOC LOCATION NS LOC.NAM"),
    ("组织", "organisation", "ORG ORGANIZATION ORGANISATION NT ORG.NAM"),
    ("行政区", "state", "GPE GPE.NAM"),
    ("实体", "entity", "ENTITY"),
    ("其他", "other", "MISC"),
    ("日期", "date", "DATE"),
    ("时间", "time", "TIME"),
    # CLUENER
    ("地址", "address", "ADDRESS"),
    ("书名", "book", "BOOK"),
    ("公司", "company", "COMPANY"),
    ("游戏", "game", "GAME"),
    ("政府机构", "government", "GOVERNMENT"),
    ("电影", "film", "MOVIE"),
    ("职位", "position", "POSITION TITLE"),
    ("景点", "scene", "SCENE"),
    # Resume
    ("国籍", "nationality", "CONT"),
    ("学历", "education", "EDU"),
    ("专业", "profession", "PRO"),
    ("民族", "ethnicity", "RACE"),
)
"""What an entity is called in Chinese and English answers, and in the tags of public sets."""
_NAMES = {alias: (chinese, english) for chinese, english, aliases in _KINDS for alias in aliases.split()}
_CHINESE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class Entity(NamedTuple):
    """`start` and `end` are characters of the text: the first, and the one after the last."""

    kind: str
    """As the set has it, e.g. PER."""
    start: int
    end: int


class Sentence(NamedTuple):
    text: str
    entities: Sequence[Entity]

    @property
    def row(self) -> dict[str, Any]:
        """As a row of a JSON file has it."""
        spans = [{"type": kind, "start": start, "end": end} for kind, start, end in self.entities]
        return {"text": self.text, "entities": spans}

    @property
    def prompt(self) -> str:
        """What a model is asked, in the language of the sentence. ValueError for an empty one."""
        text = strip_controls(self.text).strip()
        if not text:
            raise ValueError("an empty sentence")
        return f"{INSTRUCTIONS[self._english]}\n{text}"

    @property
    def answer(self) -> str:
        """JSON: the name of each kind that occurs -> its entities, in their order. Each mention counts; {} for none."""
        found: dict[str, list[str]] = {}
        for kind, start, end in sorted(self.entities, key=lambda entity: entity[1:]):
            said = strip_controls(self.text[start:end]).strip()
            if not said:
                raise ValueError("an entity that is white space")
            name = _NAMES[kind.upper()][self._english] if kind.upper() in _NAMES else kind
            found.setdefault(name, []).append(said)
        return as_json(found)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]

    @property
    def _english(self) -> bool:
        return not _CHINESE.search(self.text)


_TAG = re.compile(r"(?P<place>[BIESMLU])[-_](?P<kind>.+)|(?P<kind_>.+)[-_](?P<place_>[BIESMLU])|(?P<alone>[BI])")
NO_TAG = "a tag that is neither O nor like B-PER"
_INSIDE, _LAST = "IMEL", "ESLU"


def is_tag(tag: str) -> bool:
    """Whether it is O, B-PER or PER-B, or, in a set with one kind of entity, B or I."""
    return tag == "O" or _TAG.fullmatch(tag) is not None


def _parts(tag: str) -> tuple[str, str] | None:
    """(B, PER) of B-PER; None of O."""
    if not (match := _TAG.fullmatch(tag)):
        return None
    return match["place"] or match["place_"] or match["alone"], match["kind"] or match["kind_"] or "ENTITY"


def of_tags(tokens: Sequence[str], tags: Sequence[str]) -> Sentence:
    """The sentence of a tag for each token: BIO, BIOES, BMES or BILOU. ValueError(reason) for tags of another kind.

    As in conlleval: an I that continues nothing begins an entity. Words are joined as their language joins them.
    """
    if len(tokens) != len(tags):
        raise ValueError("not as many tags as tokens")
    text, starts = _joined(tokens)
    entities: list[Entity] = []
    goes_on = False  # whether the last entity reaches up to here and is not closed
    for token, tag, start in zip(tokens, tags, starts, strict=True):
        if not is_tag(tag):
            raise ValueError(NO_TAG)
        parts = _parts(tag)
        if parts is None:
            goes_on = False
            continue
        (place, kind), end = parts, start + len(token)
        if goes_on and place in _INSIDE and entities[-1].kind == kind:
            entities[-1] = entities[-1]._replace(end=end)
        else:
            entities.append(Entity(kind, start, end))
        goes_on = place not in _LAST
    return Sentence(text, entities)


def _joined(tokens: Sequence[str]) -> tuple[str, list[int]]:
    """The text of tokens, and where each begins. Words are divided by spaces, characters and Chinese words are not."""
    words = not any(map(_CHINESE.search, tokens)) and any(len(token) > 1 for token in tokens)
    text, starts, before = "", [], ""
    for token in tokens:
        between = before and (words or (_is_word(before) and _is_word(token)))
        text += " " if between else ""
        starts.append(len(text))
        text, before = text + token, token
    return text, starts


def _is_word(token: str) -> bool:
    """Whether it is a word of Latin letters or digits, rather than a character of one."""
    return len(token) > 1 and token.isascii() and token[0].isalnum() and token[-1].isalnum()
