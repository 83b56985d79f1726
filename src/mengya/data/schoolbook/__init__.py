"""The embedded schoolbook: a small corpus in our own words, so that a first model needs no download.

Tables of facts and grammars of phrases (``book/``) become running text, conversations, preference pairs and held-out
questions. What the held-out files ask is disjoint from training by construction: question templates, operand pairs and
invented names are split before anything is generated.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mengya.data.schoolbook import passages
from mengya.data.schoolbook.entities import entities
from mengya.data.schoolbook.preferences import preferences
from mengya.data.schoolbook.prose import documents
from mengya.data.schoolbook.questions import questions
from mengya.data.schoolbook.tables import load
from mengya.data.schoolbook.talk import as_messages, conversations

PREFERENCES, HELD_OUT_PREFERENCES = 3000, 300
FILES = {
    "conversations.jsonl": "conversation",
    "preferences.jsonl": "preference",
    "questions.jsonl": "question",
    "heldout_preferences.jsonl": "preference",
}
"""What `write` writes besides ``text.jsonl``, and what each row is."""
ENTITY_FILES = {"entities.jsonl": "conversation", "heldout_entities.jsonl": "question"}
"""What `write_entities` writes, and as what each row is read."""
READING_FILES = {"reading.jsonl": "conversation"}
"""What `write_reading` writes, and as what each row is read."""


def write(out: Path, seed: int) -> dict[str, int]:
    """Write the schoolbook into ``out`` (created if missing); rows written per file.

    Files, one JSON object a line, UTF-8: ``text.jsonl`` {"text"}; ``conversations.jsonl`` {"messages"};
    ``preferences.jsonl`` and ``heldout_preferences.jsonl`` {"prompt": str or messages, "chosen", "rejected"};
    ``questions.jsonl`` {"kind", "id", "prompt", "answer", "accept"} (see `questions.py` for how to judge a response).
    The same seed writes the same bytes.
    """
    relations = load()
    files: dict[str, list[Any]] = {
        "text.jsonl": [{"text": text} for text in documents(relations, seed)],
        "conversations.jsonl": [{"messages": messages} for messages in conversations(relations, seed)],
        "preferences.jsonl": preferences(relations, seed, PREFERENCES, held_out=False),
        "questions.jsonl": questions(relations, seed),
        "heldout_preferences.jsonl": preferences(relations, seed, HELD_OUT_PREFERENCES, held_out=True),
    }
    return _write(out, files)


def write_entities(out: Path, seed: int) -> dict[str, int]:
    """Write sentences with their entities into ``out`` (created if missing); rows written per file.

    ``entities.jsonl`` and ``heldout_entities.jsonl`` {"text", "entities": [{"type", "start", "end"}, …]}, like `write`.
    """
    return _write(out, dict(zip(ENTITY_FILES, entities(seed), strict=True)))


def write_reading(out: Path, seed: int) -> dict[str, int]:
    """Write conversations about sentences that nobody has read before (see `passages.py`) into ``out`` (created if
    missing); rows written per file.

    ``reading.jsonl`` {"messages"}, like `write`.
    """
    talk = passages.readings(random.Random(f"{seed}/reading"), load())
    return _write(out, {"reading.jsonl": [{"messages": as_messages(turns)} for turns in talk]})


def _write(out: Path, files: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (out / name).write_text("".join(lines), encoding="utf-8", newline="\n")
    return {name: len(rows) for name, rows in files.items()}
