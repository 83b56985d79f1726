"""The schoolbook's tables: facts and phrases, read from the text files in ``book/``.

A fact is a subject with one right answer (and other accepted renderings of it); a relation is what may be said and
asked about all of its facts. The formats are described in the first lines of the files themselves.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Fact:
    """One true statement. ``answers[0]`` is taught; the others are right too: accepted, never "wrong"."""

    relation: str
    subject: str
    answers: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def answer(self) -> str:
        return self.answers[0]

    @property
    def id(self) -> str:
        return "/".join((self.relation, self.subject, *(value for _, value in self.attributes)))

    def fill(self, template: str, answer: str | None = None) -> str:
        """``template`` with this fact's columns in place; English sentences get their capital letter."""
        for key, value in self.attributes:
            template = template.replace("{" + key + "}", value)
        text = template.replace("{s}", self.subject).replace("{a}", self.answer if answer is None else answer)
        return text[0].upper() + text[1:] if text.isascii() and text[-1] in ".?" else text


@dataclass(frozen=True)
class Relation:
    """Facts of one kind with their phrases; every phrase is a template for `Fact.fill`.

    ``kind`` is the type of subject that can be invented (see `unknown.py`), or None. ``train`` and ``held`` are
    question templates: no held one is ever used outside the held-out files.
    """

    name: str
    lang: str
    kind: str | None
    facts: list[Fact]
    phrases: dict[str, list[str]]
    train: list[str]
    held: list[str]

    @property
    def say(self) -> list[str]:
        return self.phrases["say"]

    @property
    def reply(self) -> list[str]:
        return self.phrases["reply"]

    def accept(self, fact: Fact) -> list[str]:
        """Every rendering of the right answer, the bare answer first."""
        full_stop = "." if self.lang == "en" else "。"
        sentences = [fact.fill(reply, answer) for answer in fact.answers for reply in self.reply]
        short = [fact.fill(form, answer) for answer in fact.answers for form in ["{a}", *self.phrases.get("short", [])]]
        bare = [text for answer in short for text in (answer, answer + full_stop)]
        return list(dict.fromkeys(bare + sentences))


def stable_hash(text: str) -> int:
    """The same number on every machine and in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def read_lines(*names: str) -> Iterator[str]:
    """The lines of the files in ``book/`` without comments and blank lines."""
    for name in names:
        for line in resources.files(__package__).joinpath("book", name).read_text(encoding="utf-8").split("\n"):
            if line.strip() and not line.startswith("#"):
                yield line


def read_sections(*names: str) -> Iterator[tuple[str, str, list[str]]]:
    """(title, rest of the title line, body lines) of each ``[title] rest`` section of the files, in order."""
    title, rest = "", ""
    body: list[str] = []
    for line in read_lines(*names):
        if line.startswith("["):
            if title:
                yield title, rest, body
            title, _, rest = line[1:].partition("]")
            rest, body = rest.strip(), []
        else:
            body.append(line)
    yield title, rest, body


def grouped(lines: Iterable[str]) -> dict[str, list[str]]:
    """{"say": [...], "ask": [...], ...} from lines that start with the key."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        key, _, text = line.partition(" ")
        groups.setdefault(key, []).append(text)
    return groups


def alternatives(lines: Iterable[str]) -> dict[str, list[str]]:
    """{"user": [...], ...} from one line for each key, whose texts are divided by "|"."""
    return {key: line.split("|") for key, (line,) in grouped(lines).items()}


SUBJECTS = ("identity", "geography", "nature", "time_and_people", "words")


def _read_facts() -> dict[str, list[tuple[str, str, dict[str, str]]]]:
    """relation -> [(subject columns, answers, constant attributes)]."""
    facts: dict[str, list[tuple[str, str, dict[str, str]]]] = {}
    for title, rest, body in read_sections(*(f"facts_{name}.txt" for name in SUBJECTS)):
        entries = " ".join(body).split()
        if rest == "chain":
            pairs = list(zip(entries, entries[1:] + entries[:1], strict=True))
            constants = {}
        else:
            pairs = [(left, right) for left, _, right in (entry.partition("=") for entry in entries)]
            constants = dict(part.split("=") for part in rest.split())
        facts.setdefault(title, []).extend((left, right, constants) for left, right in pairs)
    return facts


def load() -> list[Relation]:
    """All relations with their facts, in the order of the phrase files; question templates are already split."""
    frames = {title: grouped(body) for title, _, body in read_sections("frames.txt")}
    tables = _read_facts()
    relations = []
    for title, rest, body in read_sections(*(f"phrases_{name}.txt" for name in (*SUBJECTS, "english"))):
        options = dict(part.split("=", 1) for part in rest.split())
        source = options.get("reverse")
        facts = []
        for left, right, constants in tables[source or title]:
            columns = options.get("cols", "s").split("/")
            named = dict(zip(columns, left.replace("_", " ").split("/"), strict=True))
            subject, answers = named.pop("s"), tuple(right.replace("_", " ").split("|"))
            facts.append(Fact(title, subject, answers, (*constants.items(), *named.items())))
        # From answer to subject; every accepted answer but the first is left out.
        turned = [Fact(title, fact.answer, (fact.subject,), fact.attributes) for fact in facts]
        if source:
            facts = turned
        elif "both" in options:
            facts += turned
        lang, phrases = options.get("lang", "zh"), grouped(body)
        train, held = _split_questions(phrases, frames[lang])
        relations.append(Relation(title, lang, options.get("kind"), facts, phrases, train, held))
    return relations


def _split_questions(phrases: dict[str, list[str]], frames: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """(train, held) templates. Which noun-phrase frame is held out depends on the noun phrase alone, because two
    relations may share one ("{s}所在的洲")."""
    noun = phrases["np"][0]
    held = frames["turn"][stable_hash(noun) % len(frames["turn"])]
    train = [frame.replace("{c}", clause) for clause in phrases["c"] for frame in frames["core"]]
    train += [frame.replace("{np}", noun) for frame in frames["turn"] if frame != held]
    return train + phrases["ask"], [*phrases["held"], held.replace("{np}", noun)]


Known = tuple[Relation, Fact]


def by_subject(relations: list[Relation]) -> dict[str, list[Known]]:
    """All that is known about each subject."""
    known: dict[str, list[Known]] = {}
    for relation in relations:
        for fact in relation.facts:
            known.setdefault(fact.subject, []).append((relation, fact))
    return known
