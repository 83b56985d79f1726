"""Questions about passages that nobody has read before: of invented subjects (``book/passages.txt``), and of facts
changed against the schoolbook's. So the answer can only be copied; and sometimes it is not in the passages.

Invented names and changed facts are on one side of the split each; some wordings are for held-out questions alone.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mengya.data.schoolbook import unknown
from mengya.data.schoolbook.tables import Fact, Relation, grouped, read_sections, stable_hash
from mengya.data.schoolbook.topics import load_names
from mengya.text.grounding import CHINESE, sentence_message

QUESTIONS = 300
READINGS = 20_000
"""Conversations about a sentence."""
_LONGEST = 130
"""Characters of all passages of a question together."""
_CHANGED = 0.3
"""The share of changed facts."""
_TOLD = 0.2
"""The share of `Attribute.told` in held-out passages, however many wordings there are for training."""
_PRONOUNS, _ABSENT, _FRAMED = 0.2, 0.7, 0.3
"""Of the sentences that are asked about one by one: the shares of pronouns in place of the subject, of conversations
with a question that has no answer, and of plain questions with one of `_ASKING` before them."""
_ASKING = ("请问", "我想知道，", "请告诉我，", "你知道吗？", "我想问一下，", "麻烦问一下，", "帮我查一下，")
_SLOT = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Attribute:
    """What may be told of a subject, and asked; `told` and `asked` are for held-out questions alone."""

    values: list[str]
    say: list[str]
    ask: list[str]
    told: list[str]
    asked: list[str]


@dataclass(frozen=True)
class Kind:
    """Subjects of one kind. `changed`: names and values are the schoolbook's, put together anew."""

    names: list[str]
    attributes: list[Attribute]
    pronoun: str = ""
    changed: bool = False
    invented: str | None = None
    """What `unknown.invent` calls this kind, if it has names for it."""
    true: frozenset[tuple[str, str]] = frozenset()
    """Names and values of the schoolbook, which are not told together."""


@dataclass(frozen=True)
class Told:
    """One thing told of a subject."""

    attribute: Attribute
    subject: str
    value: str

    def say(self, way: str) -> str:
        return way.replace("{s}", self.subject).replace("{a}", self.value)


@dataclass(frozen=True)
class Scene:
    """Passages; questions with their answers and the numbers of the passages; questions that have none."""

    passages: list[str]
    answered: list[tuple[str, str, int]]
    absent: list[str]


def is_held_out(name: str) -> bool:
    """Whether a name, or a changed fact, is for the held-out questions only (about one in five)."""
    return stable_hash(f"passage {name}") % 5 == 0


def load_kinds() -> tuple[dict[str, list[str]], list[Kind]]:
    """(the parts of names and values, the kinds of invented subjects)."""
    parts: dict[str, list[str]] = {}
    kinds: dict[str, Kind] = {}
    for title, rest, body in read_sections("passages.txt"):
        lines = {key: text for key, (text,) in grouped(body).items()}
        kind, _, attribute = title.partition("/")
        if title == "parts":
            parts = {key: text.split() for key, text in lines.items()}
        elif attribute:
            phrases = (lines[key].split("|") for key in ("say", "ask", "told", "asked"))
            kinds[kind].attributes.append(Attribute([rest], *phrases))
        else:
            kinds[kind] = Kind(lines["name"].split(), [], rest)
    return parts, list(kinds.values())


def changed_kinds(relations: list[Relation]) -> list[Kind]:
    """The relations that have enough facts of one sort to exchange their answers."""
    kinds = []
    for relation in relations:
        for constants in dict.fromkeys(fact.attributes for fact in relation.facts) if relation.lang == "zh" else ():
            facts = [fact for fact in relation.facts if fact.attributes == constants]
            values = list(dict.fromkeys(fact.answer for fact in facts))
            if len(facts) >= 10 and len(values) >= 4:
                open_fact = Fact(relation.name, "{s}", ("{a}",), constants)
                say, ask, asked = (
                    [open_fact.fill(text.rstrip("。")) for text in texts]
                    for texts in (relation.say, relation.train, relation.held)
                )
                attribute = Attribute(values, say, ask, [], asked)
                names = [fact.subject for fact in facts]
                true = frozenset((fact.subject, answer) for fact in facts for answer in fact.answers)
                kinds.append(Kind(names, [attribute], changed=True, invented=relation.kind, true=true))
    return kinds


class Maker:
    """Makes scenes of one side of the split."""

    def __init__(self, rng: random.Random, relations: list[Relation], held_out: bool):
        self.rng, self.held_out = rng, held_out
        self.parts, self.kinds = load_kinds()
        self.changed = changed_kinds(relations)
        self.taken = [name for names in load_names() for name in names.names["zh"]]
        """Names that held-out questions ask about outside of passages."""

    def scene(self) -> Scene:
        while True:
            scene = self._scene()
            if scene.answered and scene.absent and sum(map(len, scene.passages)) <= _LONGEST:
                return scene

    def sentence(self) -> tuple[str, list[tuple[str, str]]]:
        """A sentence, and (question, answer) of one or two about its subject. Who is asked about is no question for the
        model: `rag/small.py` shows it sentences that name the subject."""
        rng = self.rng
        kind = self._kind()
        attribute = rng.choice(kind.attributes)
        while not (subject := self._subject(kind, [])):
            pass
        fact = self._told(kind, subject, attribute)
        way = rng.choice(attribute.say)
        if kind.pronoun and rng.random() < _PRONOUNS:
            way = re.sub(r"^\{s\}", kind.pronoun, way)
        turns = [(self._framed(attribute, subject), f"{fact.value}。")]
        others = [other for other in kind.attributes if other is not attribute]
        if others and rng.random() < _ABSENT:
            turns.append((self._framed(rng.choice(others), subject), CHINESE.refusal))
        rng.shuffle(turns)
        return f"{fact.say(way)}。", turns

    def _framed(self, attribute: Attribute, subject: str) -> str:
        question = self._asked(attribute, subject)
        plain = question.endswith("？") and not question.startswith(("请", "我", "你"))
        return f"{self.rng.choice(_ASKING)}{question}" if plain and self.rng.random() < _FRAMED else question

    def _kind(self) -> Kind:
        return self.rng.choice(self.changed if self.rng.random() < _CHANGED else self.kinds)

    def _scene(self) -> Scene:
        """One to four subjects, mostly of one kind and told the same of."""
        rng = self.rng
        kind = self._kind()
        count, depth = rng.choices((1, 2, 3, 4), (2, 3, 3, 2))[0], rng.choices((1, 2, 3), (3, 4, 3))[0]
        wanted = self._attributes(kind, depth)
        scene = Scene([], [], [])
        subjects: list[str] = []
        for i in range(count):
            other = i > 0 and rng.random() < 0.25
            its = rng.choice(self.kinds) if other else kind
            attributes = self._attributes(its, depth) if other or rng.random() < 0.3 else wanted
            if subject := self._subject(its, subjects):
                subjects.append(subject)
                self._write(scene, [self._told(its, subject, attribute) for attribute in attributes], its.pronoun)
                missing = [attribute for attribute in its.attributes if attribute not in attributes]
                scene.absent.extend(self._asked(attribute, subject) for attribute in missing[:1])
        if stranger := self._subject(kind, subjects):
            scene.absent.append(self._asked(wanted[0], stranger))
        return scene

    def _attributes(self, kind: Kind, count: int) -> list[Attribute]:
        return self.rng.sample(kind.attributes, min(count, len(kind.attributes)))

    def _write(self, scene: Scene, facts: list[Told], pronoun: str) -> None:
        """A passage of these facts, or now and then more text for the last one."""
        rng = self.rng
        sentences = []
        for i, fact in enumerate(facts):
            new = self.held_out and fact.attribute.told and rng.random() < _TOLD
            way = rng.choice(fact.attribute.told if new else fact.attribute.say)
            if i and pronoun and rng.random() < 0.5:
                way = re.sub(r"^\{s\}", pronoun, way)
            sentences.append(fact.say(way))
        text = rng.choice("。，").join(sentences) + "。"
        if scene.passages and rng.random() < 0.15:
            scene.passages[-1] += text
        else:
            scene.passages.append(text)
        number = len(scene.passages)
        scene.answered.extend((self._asked(fact.attribute, fact.subject), fact.value, number) for fact in facts)

    def _asked(self, attribute: Attribute, subject: str) -> str:
        """Held-out questions are half in new words, and all of those that are asked of the schoolbook's own facts."""
        new = self.held_out and (not attribute.told or self.rng.random() < 0.5)
        return self.rng.choice(attribute.asked if new else attribute.ask).replace("{s}", subject)

    def _subject(self, kind: Kind, others: list[str]) -> str:
        """One that is not among the others; "" if there is none, which is seldom."""
        for _ in range(50):
            if kind.invented and self.rng.random() < 0.5:
                name = unknown.invent(self.rng, kind.invented, self.held_out)
            else:
                name = self._filled(self.rng.choice(kind.names))
            if name not in others and all(self._values(kind, name, attribute) for attribute in kind.attributes):
                return name
        return ""

    def _values(self, kind: Kind, subject: str, attribute: Attribute) -> list[str]:
        """What may be told of the subject on this side of the split."""
        if not kind.changed:
            return attribute.values
        new = (value for value in attribute.values if is_held_out(f"{subject}={value}") == self.held_out)
        return [value for value in new if value != subject and (subject, value) not in kind.true]

    def _told(self, kind: Kind, subject: str, attribute: Attribute) -> Told:
        return Told(attribute, subject, self._filled(self.rng.choice(self._values(kind, subject, attribute))))

    def _filled(self, pattern: str) -> str:
        return _SLOT.sub(lambda match: self._slot(match[1]), pattern)

    def _slot(self, slot: str) -> str:
        """What stands for a slot; see the first lines of the file."""
        rng = self.rng
        if "|" in slot:
            return rng.choice(slot.split("|"))
        if slot in self.parts:
            return rng.choice(self.parts[slot])
        if slot == "person":
            return self._name(self.parts["surname"], self.parts["given"], self.parts["given"])
        if slot == "stem2":
            return self._name(self.parts["stem"], self.parts["stem"])
        low, high = {"year": (1750, 2024), "month": (1, 12), "day": (1, 28), "hour": (5, 11)}.get(
            slot, (10 ** (len(slot) - 1), 10 ** len(slot) - 1)
        )
        return str(rng.randint(low, min(high, 59 if slot == "59" else high)))

    def _name(self, *parts: list[str]) -> str:
        while True:
            chosen = [self.rng.choice(part) for part in parts]
            name = "".join(chosen)
            new = is_held_out(name) == self.held_out and not any(known in name for known in self.taken)
            if new and len(set(chosen)) == len(chosen):
                return name


def _answer(value: str, number: int) -> str:
    return f"{value}[{number}]。"


def readings(rng: random.Random, relations: list[Relation], count: int = READINGS) -> Iterator[list[tuple[str, str]]]:
    """(what is asked, the answer): a question about one sentence, and often a second; at least one has an answer."""
    maker = Maker(rng, relations, held_out=False)
    for _ in range(count):
        sentence, ((first, answer), *more) = maker.sentence()
        yield [
            (sentence_message(first, sentence), answer),
            *((f"{CHINESE.question}{question}", said) for question, said in more),
        ]


def questions(rng: random.Random, relations: list[Relation], count: int = QUESTIONS) -> list[dict[str, Any]]:
    """Held-out ones: two of three have an answer."""
    maker, rows = Maker(rng, relations, held_out=True), []
    for i in range(count):
        scene = maker.scene()
        if i % 3:
            prompt, value, number = rng.choice(scene.answered)
            answer = _answer(value, number)
        else:
            prompt, answer = rng.choice(scene.absent), CHINESE.refusal
        rows.append(
            {"kind": "grounded", "id": f"grounded/{i}", "prompt": prompt, "passages": scene.passages, "answer": answer}
        )
    return rows
