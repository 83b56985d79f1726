"""What training would make of data files, told before anything is trained."""

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mengya.data.conversations import is_supervised, parse_conversation, read_conversations
from mengya.data.documents import read_documents
from mengya.data.files import scan_files
from mengya.data.fitting import fit_conversation, last_answer
from mengya.data.intake import FileCounts, Intake, describe, shorten
from mengya.data.preferences import Preference, parse_preference, read_preferences
from mengya.data.readers import Rejected, Row, read_rows
from mengya.data.texts import CONVERSATION, choose_field, is_conversation
from mengya.errors import UserError
from mengya.metrics import say
from mengya.text.chat import Chat, Message
from mengya.text.tokenizer import Tokenizer

Kind = Literal["corpus", "chat", "pairs"]
_BYTES_PER_TOKEN = 3.6
_SAMPLED = 64
_SHOWN_CHARS = 600
_NO_SHAPE = ("no field of a known conversation shape", "plain text, not a conversation", "neither an object nor a list")


@dataclass
class Inspection:
    """What was found in one file."""

    file: str
    kind: Kind
    exact: bool
    """Whether `lengths` were counted by a tokenizer, rather than estimated from bytes."""
    counts: FileCounts = field(default_factory=FileCounts)
    reasons: dict[str, int] = field(default_factory=dict)
    """Why rows would be quarantined, with their numbers."""
    rejected: list[Rejected] = field(default_factory=list)
    """The first row with each of the reasons."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each document, conversation or pair (both of its sides)."""
    samples: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        counts = self.counts.to_json()
        return {
            "file": self.file,
            "read_as": self.kind,
            **counts,
            "reasons": self.reasons,
            "tokens": _statistics(self.lengths) | {"exact": self.exact},
            "samples": self.samples,
        }


class _Watched(Intake):
    """Writes nothing, and keeps the first row with each reason."""

    def __init__(self) -> None:
        super().__init__(None)
        self.first: dict[str, Rejected] = {}

    def add(self, item: Rejected) -> None:
        super().add(item)
        self.first.setdefault(item.reason, item)


def inspect_files(
    paths: list[str], kind: Kind | None, text_field: str | None, model: Path | None, samples: int
) -> Iterator[Inspection]:
    """One after another. UserError as `scan_files`, or if the model directory has no tokenizer or chat template."""
    for file in scan_files(paths)[0]:
        found = kind or _kind_of(file)
        tokenizer = None if model is None else Tokenizer.load(model)
        chat = Chat(tokenizer) if tokenizer is not None and found != "corpus" else None
        yield _inspect(str(file), found, text_field, tokenizer, chat, samples)


def _kind_of(file: Path) -> Kind:
    """By the first rows: what most of them are."""
    rows = [row.value for row in islice(read_rows(file), _SAMPLED) if isinstance(row, Row)]
    pairs = sum(_is_like_a_pair(value) for value in rows)
    chats = sum(_is_like_a_chat(value) for value in rows)
    if rows and 2 * pairs >= len(rows):
        return "pairs"
    if not rows or 2 * chats < len(rows):
        return "corpus"
    if not any(map(_is_surely_a_chat, rows)) and choose_field(rows) not in (None, CONVERSATION):
        return "corpus"  # it looks like conversations, but none is one, and it has a text
    return "chat"


def _is_like_a_pair(value: Any) -> bool:
    """Whether it is a preference pair, or looks like one that has another fault."""
    try:
        return bool(parse_preference(value))
    except ValueError as error:
        return str(error).startswith("chosen and rejected ")


def _is_like_a_chat(value: Any) -> bool:
    """Whether it is a conversation, or looks like one that has another fault."""
    try:
        return bool(parse_conversation(value))
    except ValueError as error:
        return str(error) not in _NO_SHAPE


def _is_surely_a_chat(value: Any) -> bool:
    """Whether it is a conversation; a text beside an empty list of entities may be anything."""
    return is_conversation(value) and parse_conversation(value)[-1]["content"] != "{}"


def _inspect(
    file: str, kind: Kind, text_field: str | None, tokenizer: Tokenizer | None, chat: Chat | None, samples: int
) -> Inspection:
    intake = _Watched()
    found = Inspection(file, kind, tokenizer is not None)
    count = partial(_tokens, tokenizer)
    if kind == "corpus":
        for document in read_documents(file, text_field, intake):
            found.lengths.append(count(document.text))
            if len(found.samples) < samples:
                found.samples.append({"text": document.text})
    else:
        rows: Iterator[Row] = (read_conversations if kind == "chat" else read_preferences)(file, intake)
        for row in rows:
            talks = _talks_of(row.value)
            try:
                lengths = [_rendered(chat, t, kind) if chat else sum(count(m["content"]) + 4 for m in t) for t in talks]
            except UserError as error:  # the template refuses it
                intake.add(Rejected(row.file, row.line, str(error), row.value, row.partly))
                continue
            found.lengths.append(sum(lengths))
            if len(found.samples) < samples:
                found.samples.append(_sample(row.value))
    found.counts = intake.of(file)
    found.reasons, found.rejected = dict(intake.reasons.most_common()), list(intake.first.values())
    return found


def _rendered(chat: Chat, talk: list[Message], kind: Kind) -> int:
    """Tokens of all documents of a conversation, or of one side of a pair."""
    documents = [last_answer(chat, talk)] if kind == "pairs" else fit_conversation(chat, talk, sys.maxsize)[0]
    return sum(len(document.ids) for document in documents)


def _tokens(tokenizer: Tokenizer | None, text: str) -> int:
    return round(len(text.encode()) / _BYTES_PER_TOKEN) if tokenizer is None else len(tokenizer.encode(text))


def _talks_of(value: list[Message] | Preference) -> list[list[Message]]:
    """The conversations that are trained on: one, or both sides of a pair."""
    if isinstance(value, Preference):
        return [[*value.prompt, {"role": "assistant", "content": said}] for said in (value.chosen, value.rejected)]
    return [value]


def _sample(value: list[Message] | Preference) -> dict[str, Any]:
    """The messages, and the texts in them that are learnt; of a pair, the chosen side and both answers."""
    if isinstance(value, Preference):
        sides = {"chosen": value.chosen, "rejected": value.rejected}
        return {"messages": _talks_of(value)[0], "supervised": list(sides.values()), **sides}
    return {"messages": value, "supervised": [message["content"] for message in value if is_supervised(message)]}


def _statistics(lengths: list[int]) -> dict[str, Any]:
    if not lengths:
        return {"total": 0}
    ordered = sorted(lengths)
    return {
        "total": sum(ordered),
        "median": statistics.median_low(ordered),
        "p95": ordered[int(0.95 * (len(ordered) - 1))],
        "longest": ordered[-1],
    }


def print_inspection(found: Inspection, as_json: bool) -> None:
    """For people, or as one line of JSON."""
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False, default=str).encode("utf-8", "replace").decode())
        return
    say(f"{found.file}, read as {found.kind}: {describe(found.counts)}")
    read = ", ".join(f"{name} ({rows:,} rows)" for name, rows in found.counts.fields_read.most_common())
    if read:
        say(f"  read: {read}")
    if found.lengths:
        size = _statistics(found.lengths)
        about = "" if found.exact else "about (give --model for exact numbers) "
        say(f"  tokens: {about}{size['total']:,} in all, median {size['median']:,}, longest {size['longest']:,}")
    for item in found.rejected:
        say(f"  quarantined, {found.reasons[item.reason]:,} x {item.reason}; first at line {item.line}:")
        say(_indented(shorten(item.raw)[:200]))
    for number, sample in enumerate(found.samples, 1):
        say(f"  sample {number}" + (" (» is learnt)" if "messages" in sample else ""))
        for line in _lines(sample):
            say(_indented(line))


def _lines(sample: dict[str, Any]) -> Iterator[str]:
    if "text" in sample:
        yield _short(sample["text"])
    elif "chosen" in sample:
        for message in sample["messages"][:-1]:
            yield f"{message['role']}: {_short(message['content'])}"
        for side in ("chosen", "rejected"):
            yield f"» {side}: {_short(sample[side])}"
    else:
        for message in sample["messages"]:
            mark = "» " if is_supervised(message) else ""
            yield f"{mark}{message['role']}: {_short(message['content'])}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}… ({len(text):,} characters)"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))
