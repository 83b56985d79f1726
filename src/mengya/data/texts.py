"""The text of a row of a corpus: which field holds it, what it is made up of, and where one document ends."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mengya.data import fields
from mengya.data.conversations import parse_conversation
from mengya.data.fields import Fields, Notes, is_filled
from mengya.data.transcripts import turns_of
from mengya.data.turns import map_roles

CONVERSATION = "a conversation"
"""Instead of a field: the row is a conversation, and its turns are the text."""

_NOT_TEXT_NAMES = re.compile(
    r"(?:.*_)?(?:id|ids|uid|uuid|guid|md5|sha\d*|hash|url|uri|link|href|path|file|filename|date|time|timestamp|datetime"
    r"|email|ip|lang|language|license|source|split|type|category|label|labels|tags|meta|metadata)"
    r"|.*(?:编号|序号|文件名|路径|链接|网址|地址|时间|日期|来源|类别|标签)"
)
_NOT_TEXT = (
    re.compile(r"(?=[!-~]*[\d/\\@_=])[!-~]+"),  # one word with what words do not have: an id, a hash, an address
    re.compile(r"[^\s，。！？；,;!?]*[/\\][^\s，。！？；,;!?]*"),  # a path
    re.compile(r"\S+\.(?:txt|md|jsonl?|html?|pdf|csv|tsv|docx?|xml|gz|zst|png|jpe?g|mp[34])", re.IGNORECASE),
    re.compile(
        r"(?:公元)?[\d〇一二三四五六七八九十]{1,4}\s?[-/.年]\s?[\d一二三四五六七八九十]{1,2}(?:\s?[-/.月]\s?[\d一二三四五六七八九十]{1,4}\s?日?)?(?:[T\s].{0,20})?"
    ),
    re.compile(r"[\d\s.,:：%+*/-]+"),
)


def looks_like_text(value: str) -> bool:
    """Whether a value may be prose: not an id, path, address, date, hash or number."""
    value = value.strip()
    return bool(value) and not (len(value) < 300 and any(form.fullmatch(value) for form in _NOT_TEXT))


def choose_field(sample: Sequence[Any]) -> str | None:
    """The field that holds the text of rows like these, CONVERSATION, or None if there is none.

    The first of `fields.TEXTS` that at least half of the rows have; else the turns, if the rows are conversations; else
    the field with the most text. A field of ids, paths, addresses, dates or hashes is not taken for text.
    """
    rows = [row for row in sample if isinstance(row, dict)]
    texts: dict[str, list[str]] = {}
    for row in rows:
        for name, value in row.items():
            if text := joined(value):
                texts.setdefault(name, []).append(text)
    good = {n: found for n, found in texts.items() if 2 * sum(map(looks_like_text, found)) > len(found)}
    if named := _named(good, len(rows)):
        return named
    if 2 * sum(map(is_conversation, sample)) > len(sample):
        return CONVERSATION
    left_out = frozenset((*fields.REJECTED, *fields.LABELS))
    rest = {n: f for n, f in good.items() if not _NOT_TEXT_NAMES.fullmatch(_plain(n)) and _plain(n) not in left_out}
    longest = max(rest, key=lambda name: sum(map(len, rest[name])), default=None)
    return longest or _named(texts, len(rows))


def _named(texts: dict[str, list[str]], rows: int) -> str | None:
    """The first of `fields.TEXTS` that at least half of the rows have."""
    known = {_plain(name): name for name in reversed(texts) if 2 * len(texts[name]) >= rows}
    return next((known[name] for name in fields.TEXTS if name in known), None)


def _plain(name: str) -> str:
    return str(name).strip().lower()


def is_conversation(value: Any) -> bool:
    try:
        return bool(parse_conversation(value))
    except ValueError:
        return False


def joined(value: Any, not_read: set[str] | None = None, place: str = "") -> str:
    """The text in a field: a string, or paragraphs (strings, or objects with a text each), one a line; "" for none.

    The filled fields inside that are not part of it come into `not_read`, as `place.name`.
    """
    if isinstance(value, str):
        return value if value.strip() else ""
    if isinstance(value, Mapping):
        taken = _text_fields(value)
        if not_read is not None:
            not_read.update(f"{place}.{n}" for n, inner in value.items() if n not in taken and is_filled(inner))
        return "\n".join(joined(value[name], not_read, f"{place}.{name}") for name in taken)
    if isinstance(value, list | tuple):
        return "\n".join(filter(None, (joined(inner, not_read, place) for inner in value)))
    return ""


def _text_fields(value: Mapping[Any, Any]) -> list[Any]:
    """Of an object inside a field, the names that hold its text: a known one, the same text in several languages, or
    the one with the most text."""
    named = {_plain(name): name for name in value if not _NOT_TEXT_NAMES.fullmatch(_plain(name))}
    for known in fields.TEXTS:
        if known in named and _has_text(value[named[known]]):
            return [named[known]]
    strings = [name for name in named.values() if isinstance(value[name], str) and looks_like_text(value[name])]
    languages = [name for name in strings if _plain(name).endswith("_text")]
    return languages or sorted(strings, key=lambda name: -len(value[name]))[:1]


def _has_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(_text_fields(value))
    return any(map(_has_text, value)) if isinstance(value, list | tuple) else bool(joined(value))


def text_of_row(value: Any, chosen: str | None, notes: Notes) -> str:
    """The text of one row, by the field that was chosen for its file. ValueError(reason) if there is none."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("empty")
        return value
    if chosen == CONVERSATION:
        return "\n".join(message["content"] for message in parse_conversation(value, notes))
    if not isinstance(value, dict):
        raise ValueError("a list, not an object with a text field")
    if chosen is None:
        raise ValueError("no field with text; set text_field")
    row = Fields(value, notes)
    name = row.find((_plain(chosen).replace("-", "_").replace(" ", "_"),))
    text = joined(row.get(name), notes.not_read, row.place(name)) if name is not None else ""
    row.close()
    if not text:
        if name is not None and isinstance(row.peek(name), str | None):
            raise ValueError("empty")
        raise ValueError(f"no string in the text field {chosen!r}; set text_field")
    return text


_ENDS = r"<\|(?:endoftext|end_of_text|begin_of_text|eot_id|eos|bos|endofdocument)\|>"
_OTHERS = r"<｜(?:end|begin)▁of▁sentence｜>|<(?:eod|EOD|eos|bos)>|</?s>"
_WIKI = r"<doc (?:doc)?id=[^\n]*>|</doc>"  # of WikiExtractor, on lines of their own
_TURNS = r"<\|im_(?:start|end)\|>"
_SENTENCE_ENDS = frozenset("。！？.!?…”’」』）)\"'~～;；")


def split_at_marks(text: str) -> list[str]:
    """The documents in a text, without the marks that other tools put around them (<|endoftext|>, </s>,
    <doc id=…>, …).

    A mark inside of a sentence, as in an article about such marks, stays. ChatML becomes the words of its turns.
    """
    if "<" not in text:
        return [text]
    parts: list[str] = []
    for part in _parts(text, rf"(?:{_ENDS}|{_OTHERS}|{_WIKI})"):
        if not part.lstrip().startswith("<|im_start|>"):
            parts.append(part)
        elif turns := turns_of(part):
            parts.append("\n".join(message["content"] for message in map_roles(turns) if message["content"]))
        else:
            parts += _parts(part, _TURNS)
    return parts or [text]


def _parts(text: str, mark: str) -> Iterator[str]:
    crossed_out = "<s>" in text and not re.match(r"\s*<s>.*</s>\s*\Z", text, re.DOTALL)  # HTML: a line through words
    begin = 0
    for match in re.finditer(rf"{mark}(?:\s*{mark})*", text):
        if crossed_out and re.search(r"</?s>", match[0]):
            continue
        before, after = text[max(0, match.start() - 1) : match.start()], text[match.end() : match.end() + 1]
        at_edge = before in ("", "\n") or after in ("", "\n", "\r")
        if match[0].count("<") == 1 and not at_edge and before not in _SENTENCE_ENDS and not _TURNS.startswith(mark):
            continue
        if (part := text[begin : match.start()]).strip():
            yield part
        begin = match.end()
    if (part := text[begin:]).strip():
        yield part
