"""Sentences with people, places and organisations (``book/entities.txt``), in the shape of rows with spans.

Held-out sentences have names that no training sentence holds, not even as a part, and some of them new wordings.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from mengya.data.entities import Entity, Sentence
from mengya.data.schoolbook.tables import grouped, read_sections, stable_hash
from mengya.data.schoolbook.topics import expand

SENTENCES, HELD_OUT_SENTENCES = 4000, 400
_KINDS = {"person": ("p", "PER"), "place": ("l", "LOC"), "organisation": ("o", "ORG")}
"""Section -> its slot in a template, and its type in a row."""
_TYPES = dict(_KINDS.values())
_SLOT = re.compile(r"\{([plo])2?\}")
_ENGLISH, _NONE = 0.15, 0.1
"""Shares of the sentences before doubles are left out: in English, and without an entity."""


@dataclass(frozen=True)
class Side:
    """What the sentences of one language on one side of the split are made of."""

    names: dict[str, list[str]]
    """By slot: {"p": [...], ...}."""
    templates: list[str]
    none: list[str]


def is_held_out(text: str) -> bool:
    """Whether a name, or a sentence without one, is for the held-out side (about one in five)."""
    return stable_hash(f"entity {text}") % 5 == 0


def load_sides(held_out: bool) -> dict[str, Side]:
    """The content of the file for one side of the split: "zh" and "en"."""
    sides = {lang: Side({}, [], []) for lang in ("zh", "en")}
    for title, lang, body in read_sections("entities.txt"):
        lines, side = grouped(body), sides[lang]
        if title == "say":
            side.templates.extend(lines["say"] + (lines["held"] if held_out else []))
            texts = [text for pattern in lines["none"] for text in expand(pattern)]
            side.none.extend(text for text in texts if is_held_out(text) == held_out)
            continue
        first, second = (line.split("|") if "|" in line else line.split() for line in lines["-"])
        glue = " " if lang == "en" and title != "place" else ""
        names = map(glue.join, product(first, second))
        side.names[_KINDS[title][0]] = [name for name in names if is_held_out(name) == held_out]
    return sides


def entities(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows {"text", "entities"} to train on, and held-out ones; no sentence twice."""
    rng = random.Random(f"{seed}/entities")
    train = list(islice(_sentences(rng, load_sides(held_out=False)), SENTENCES))
    read = "\n".join(sentence.text for sentence in train)
    new = (s for s in _sentences(rng, load_sides(held_out=True)) if not any(said in read for said in _names(s)))
    return [sentence.row for sentence in train], [sentence.row for sentence in islice(new, HELD_OUT_SENTENCES)]


def _names(sentence: Sentence) -> list[str]:
    return [sentence.text[start:end] for _, start, end in sentence.entities]


def _sentences(rng: random.Random, sides: dict[str, Side]) -> Iterator[Sentence]:
    """Without end, each once."""
    seen = set()
    while True:
        side = sides["en" if rng.random() < _ENGLISH else "zh"]
        if rng.random() < _NONE:
            sentence = Sentence(rng.choice(side.none), [])
        else:
            sentence = _filled(rng, rng.choice(side.templates), side.names)
        if sentence.text not in seen:
            seen.add(sentence.text)
            yield sentence


def _filled(rng: random.Random, template: str, names: dict[str, list[str]]) -> Sentence:
    """A template with a name in each slot, two of one kind with different ones."""
    drawn = {key: rng.sample(known, 2) for key, known in names.items()}
    text, found, end = "", [], 0
    for match in _SLOT.finditer(template):
        text += template[end : match.start()]
        name, end = drawn[match[1]]["2" in match[0]], match.end()
        found.append(Entity(_TYPES[match[1]], len(text), len(text) + len(name)))
        text += name
    return Sentence(text + template[end:], found)
