"""Rows of JSON that hold a sentence with its entities, as public sets and tools for labelling write them."""

from collections.abc import Iterator, Mapping
from typing import Any

from mengya.data import fields
from mengya.data.entities import Entity, Sentence, of_tags
from mengya.data.fields import Fields, is_filled, structured
from mengya.data.transcripts import turns_of

_TOKENS, _TAGS = ("tokens",), ("ner_tags", "tags", "labels")
_TAG_NAMES = ("tag_names", "label_names", "names", "id2label")
_TEXTS = ("text", "sentence", "content")
_SPANS = ("entities", "label", "labels", "spans")
# Names inside of an entity, in lower case and without "_".
_KINDS = ("type", "label", "entitytype", "entitygroup", "tag", "labels")
_STARTS = ("start", "startoffset", "startidx", "startpos", "begin")
_ENDS = ("end", "endoffset", "endidx", "endpos")
_WORDS = ("text", "word", "entity", "mention", "value", "name")
_TALK = (*fields.LISTS, *fields.PROMPTS, *fields.INPUTS, *fields.ANSWERS)


def sentence_in(row: Fields) -> Sentence | None:
    """The sentence with its entities in a row; None for a row of another kind. ValueError(reason) for a faulty one.

    Either `tokens` with `ner_tags`, by name, or as numbers beside their names (`tag_names`, `id2label`); or a `text`
    with `entities` or a `label`: objects with a type and a span, lists [start, end, type], or CLUENER's
    {type: {words: [[first, last]]}}. A span ends after its last character; where the words stand beside it, it may also
    end with it, or count in UTF-16.
    """
    talk = row.find(_TALK)
    if talk is not None and is_filled(row.peek(talk)):
        return None
    tokens, tags = (_list_field(row, names) for names in (_TOKENS, _TAGS))
    if tokens is not None and tags is not None:
        words, labels = structured(row.get(tokens)), structured(row.get(tags))
        return of_tags(_words(words), _names(labels, row.first(_TAG_NAMES)))
    text, spans = row.find(_TEXTS), _span_field(row)
    if text is None or spans is None or not isinstance(row.peek(text), str):
        return None
    if not is_filled(row.peek(spans)) and turns_of(row.peek(text)):  # a conversation, and a list that is empty
        return None
    said = row.get(text)
    found = [_entity(said, *span) for span in _spans(structured(row.get(spans)))]
    return Sentence(said, sorted(found, key=lambda entity: entity[1:]))


def _list_field(row: Fields, names: tuple[str, ...]) -> str | None:
    """The first of these fields that is a list of single values."""
    for name in (name for name in names if name in row):
        value = structured(row.peek(name))
        if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
            return name
    return None


def _words(tokens: list[Any]) -> list[str]:
    if not all(isinstance(token, str) for token in tokens):
        raise ValueError("a token that is not text")
    return tokens


def _names(tags: list[Any], known: Any) -> list[str]:
    """Tags by name."""
    if all(isinstance(tag, str) and not tag.isdecimal() for tag in tags):
        return tags
    known = structured(known)
    named = dict(enumerate(known)) if isinstance(known, list) else known
    if not isinstance(named, Mapping) or not named:
        raise ValueError("tags as numbers, without a list tag_names of what they mean")
    by_number = {str(number): str(name) for number, name in named.items()}
    if not all(str(tag) in by_number for tag in tags):
        raise ValueError("a number for a tag that has no name")
    return [by_number[str(tag)] for tag in tags]


def _span_field(row: Fields) -> str | None:
    """The field with the entities: a filled one, else an empty one."""
    found = [name for name in _SPANS if name in row and _are_spans(structured(row.peek(name)))]
    return next((name for name in found if is_filled(row.peek(name))), found[0] if found else None)


def _are_spans(value: Any) -> bool:
    """Whether it holds entities, perhaps none, by the looks of the first."""
    if isinstance(value, dict):
        return all(words is None or _are_places(words) for words in value.values())
    if not isinstance(value, list):
        return False
    first = value[0] if value else []
    if isinstance(first, dict):
        keys = set(map(_plain, first))
        return not keys.isdisjoint(_KINDS) and not keys.isdisjoint((*_STARTS, *_WORDS))
    return not value or (isinstance(first, list) and sorted(map(_sort_of, first)) == ["number", "number", "text"])


def _are_places(value: Any) -> bool:
    """Whether it is {words: [[first, last], ...]}."""
    return isinstance(value, dict) and all(isinstance(places, list | None) for places in value.values())


def _plain(name: Any) -> str:
    return str(name).strip().lower().replace("_", "")


def _sort_of(value: Any) -> str:
    return "text" if isinstance(value, str) else "number" if isinstance(value, int | float) else "other"


_Span = tuple[Any, Any, Any, Any]
"""Kind, start and end, and the words at this place; None for what is not told."""


def _spans(value: Any) -> Iterator[_Span]:
    for kind, words in value.items() if isinstance(value, dict) else ():
        for said, places in (words or {}).items():
            for place in places or ():
                if not isinstance(place, list) or len(place) != 2:
                    raise ValueError("an entity whose span is not two numbers")
                yield kind, *place, said
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            yield _of_object({_plain(name): part for name, part in item.items()})
        elif isinstance(item, list) and sorted(map(_sort_of, item)) == ["number", "number", "text"]:
            kind = next(part for part in item if isinstance(part, str))
            yield kind, *(part for part in item if not isinstance(part, str)), None
        else:
            raise ValueError("an entity that is neither an object nor [start, end, type]")


def _of_object(item: Mapping[str, Any]) -> _Span:
    def first(names: tuple[str, ...]) -> Any:
        return next((item[name] for name in names if item.get(name) is not None), None)

    kind = first(_KINDS)
    kind = kind[0] if isinstance(kind, list) and len(kind) == 1 else kind
    return kind, first(_STARTS), first(_ENDS), first(_WORDS)


def _entity(text: str, kind: Any, start: Any, end: Any, words: Any) -> Entity:
    if not isinstance(kind, str) or not kind.strip():
        raise ValueError("an entity without a type")
    if words is not None and not isinstance(words, str):
        raise ValueError("an entity whose words are not text")
    if start is None and end is None and words:
        start = text.find(words)
        end = start + len(words)
    first, after = _number(start), _number(end)
    if words is None and 0 <= first < after <= len(text):
        return Entity(kind.strip(), first, after)
    if words is None or first < 0:
        raise ValueError("an entity outside of its text")
    for begin, stop in ((first, after), (first, after + 1), (_characters(text, first), _characters(text, after))):
        if words and text[begin:stop] == words:
            return Entity(kind.strip(), begin, stop)
    raise ValueError("an entity whose words are not what stands at its span")


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError("an entity whose span is not two numbers")
    return int(value)


def _characters(text: str, units: int) -> int:
    """How many characters the first `units` of UTF-16 are: JavaScript and Java count an emoji as two."""
    return len(text.encode("utf-16-le", "surrogatepass")[: 2 * units].decode("utf-16-le", "replace"))
