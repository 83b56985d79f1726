"""What people say first to a chat model, and what it answers: greetings, who it is, a joke, a poem, names it never met.

Each topic has the kind of its answers (see `tasks/talk.py`), and wordings that are kept for the held-out questions.
"""

import functools
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mengya.data.schoolbook.stories import load_plots
from mengya.data.schoolbook.tables import grouped, read_sections, stable_hash

_GROUP = re.compile(r"\{([^{}]*\|[^{}]*)\}")


def expand(pattern: str) -> list[str]:
    """Every text that a pattern stands for; of ``{a|b|}`` it takes one part."""
    parts = _GROUP.split(pattern)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return list(dict.fromkeys("".join(chosen) for chosen in itertools.product(*choices)))


def patterns(line: str) -> list[list[str]]:
    """The texts of each of the patterns that a line divides by ``|``."""
    hidden = _GROUP.sub(lambda match: match.group().replace("|", "\0"), line)
    return [expand(part.replace("\0", "|")) for part in hidden.split("|")]


def bare(text: str) -> str:
    """Without punctuation, spaces and case: what two wordings share that differ in nothing else."""
    return re.sub(r"[\W_]+", "", text).lower()


def draw(rng: random.Random, groups: list[list[str]]) -> str:
    """A text of the patterns; one that stands for many texts comes more often, though not as often as they are."""
    return rng.choice(rng.choices(groups, [len(group) ** 0.5 for group in groups])[0])


@dataclass(frozen=True)
class Topic:
    """`kind` is that of its answers, or "" if they are not asked for in the held-out questions."""

    name: str
    lang: str
    kind: str
    user: list[list[str]]
    bot: list[str]
    held: list[str]

    def ask(self, rng: random.Random) -> str:
        return draw(rng, self.user)


@functools.cache
def load_topics() -> dict[str, Topic]:
    """The topics of ``book/talk.txt`` by name; no wording for training is one of the held-out ones."""
    found = {}
    for name, rest, body in read_sections("talk.txt"):
        lang, _, kind = rest.partition(" ")
        lines = {key: text for key, (text,) in grouped(body).items()}
        held = lines["held"].split("|") if "held" in lines else []
        kept = {bare(text) for text in held}
        user = [[text for text in group if bare(text) not in kept] for group in patterns(lines.get("user", ""))]
        bot = lines["bot"].split("|") if "bot" in lines else []
        found[name] = Topic(name, lang, kind, [group for group in user if group and group != [""]], bot, held)
    return found


@functools.cache
def load_jokes() -> dict[str, list[str]]:
    """Language -> jokes."""
    return {lang: jokes for lang, _, jokes in read_sections("jokes.txt")}


@dataclass(frozen=True)
class Poem:
    title: str
    author: str
    text: str

    @property
    def lines(self) -> list[str]:
        return [line for line in re.split("[，。]", self.text) if line]

    def following(self) -> Iterator[tuple[str, str]]:
        """Each line with the next."""
        return itertools.pairwise(self.lines)


@functools.cache
def load_poems() -> list[Poem]:
    return [Poem(title, author, "".join(body)) for title, author, body in read_sections("poems.txt")]


@functools.cache
def load_poem_questions() -> dict[str, list[str]]:
    """Templates for the `next` line and the `whole` poem, and `held` ones for the next line; with {line} or {title}."""
    ((_, _, body),) = read_sections("poem_questions.txt")
    lines = {key: text for key, (text,) in grouped(body).items()}
    return {key: [text for group in patterns(line) for text in group] for key, line in lines.items()}


def answer(rng: random.Random, topic: Topic) -> str:
    """An answer of the topic's kind; stories, jokes and poems are many."""
    if topic.kind == "story":
        return rng.choice(load_plots(topic.lang)).tell(rng)[1]
    if topic.kind == "joke":
        return rng.choice(load_jokes()[topic.lang])
    if topic.kind == "poem":
        return rng.choice(load_poems()).text
    return rng.choice(topic.bot)


@dataclass(frozen=True)
class Names:
    """Names of one kind that the schoolbook does not teach, and how they are asked about, by language."""

    kind: str
    ask: dict[str, list[list[str]]]
    held: list[str]
    names: dict[str, list[str]]


def is_held_out(name: str) -> bool:
    """Whether a name is for the held-out files only (about one in five)."""
    return stable_hash(f"unheard {name}") % 5 == 0


@functools.cache
def load_names() -> list[Names]:
    found = []
    for kind, _, body in read_sections("unheard.txt"):
        lines = {key: text for key, (text,) in grouped(body).items()}
        names = {"zh": lines["names"].split(), "en": lines["names_en"].replace("_", "\0").split()}
        names["en"] = [name.replace("\0", " ") for name in names["en"]]
        ask = {"zh": patterns(lines["ask"]), "en": patterns(lines["ask_en"])}
        found.append(Names(kind, ask, lines["held"].split("|"), names))
    return found
