"""The running text of the schoolbook: facts in paragraphs, stories, dialogues, sums, calendars, some English."""

import random
from collections.abc import Iterator

from mengya.data.schoolbook import arithmetic
from mengya.data.schoolbook.stories import load_plots
from mengya.data.schoolbook.tables import Fact, Known, Relation, alternatives, by_subject, read_sections
from mengya.data.schoolbook.topics import load_poems

ROUNDS = 9
"""How often each fact is told among others of its relation, each time with another phrase as long as there are some."""
STORIES = 2200
ENGLISH_STORIES = 700
POEMS = 12
"""How often each poem comes."""
DIALOGUES = 1200
EXCHANGES = 2100
"""Documents of plain questions and answers, so that pretraining already reads the wordings that conversations use."""
SUMS_SHARE = 0.95
"""The share of the arithmetic documents that is used: they are all alike."""
PUPILS = ("小明", "小红", "老师", "小华", "爸爸", "妈妈", "小丽", "爷爷", "小军", "姐姐")

EXCHANGE_FORMS = {
    "zh": (("问：", "答：", "\n"), ("问：", "答：", ""), ("", "", "")),
    "en": (("Q: ", "A: ", "\n"), ("Q: ", "A: ", " "), ("", "", " ")),
}
"""How a question and its answer are introduced, and what stands between them."""


def documents(relations: list[Relation], seed: int) -> list[str]:
    """All paragraphs, shuffled."""
    rng = random.Random(f"{seed}/prose")
    texts = [
        *_by_relation(rng, relations),
        *_subjects(rng, relations),
        *_dialogues(rng, relations),
        *_exchanges(rng, relations),
        *_stories(rng, "zh", STORIES),
        *_stories(rng, "en", ENGLISH_STORIES),
        *_calendars(rng),
        *_poems(rng),
        *(text for text in arithmetic.paragraphs(rng) if rng.random() < SUMS_SHARE),
    ]
    rng.shuffle(texts)
    return texts


def _by_relation(rng: random.Random, relations: list[Relation]) -> Iterator[str]:
    """Paragraphs of three to five facts of one relation; round r tells a fact in its (offset + r)-th way."""
    for relation in relations:
        ways = [*relation.say, relation.reply[0]]
        offsets = {fact.id: rng.randrange(len(ways)) for fact in relation.facts}
        rounds = ROUNDS if relation.lang == "zh" else 3 * ROUNDS
        for turn in range(rounds):
            order = rng.sample(relation.facts, len(relation.facts))
            while order:
                chunk = [order.pop() for _ in range(min(len(order), rng.randint(3, 5)))]
                sentences = [fact.fill(ways[(offsets[fact.id] + turn) % len(ways)]) for fact in chunk]
                yield (" " if relation.lang == "en" else "").join(sentences)


def _subjects(rng: random.Random, relations: list[Relation]) -> Iterator[str]:
    """Paragraphs that tell all that is known about one subject of several relations."""
    for about in by_subject([relation for relation in relations if relation.lang == "zh"]).values():
        for _ in range(4 if len(about) > 1 else 0):
            rng.shuffle(about)
            yield "".join(fact.fill(rng.choice(relation.say)) for relation, fact in about)


def _asked(rng: random.Random, relation: Relation, fact: Fact) -> tuple[str, str]:
    """(question, answer), mostly in the relation's own words: the shared frames occur often enough."""
    wordings = relation.phrases["ask"] if rng.random() < 0.7 else relation.train
    return fact.fill(rng.choice(wordings)), fact.fill(rng.choice(relation.reply))


def _exchanges(rng: random.Random, relations: list[Relation]) -> Iterator[str]:
    """Questions with their answers: different ones about one subject where there are several, otherwise one relation's
    about several subjects. Every fact comes first in a document before any does twice."""
    facts = [(relation, fact) for relation in relations for fact in relation.facts]
    known = by_subject(relations)
    queue: list[Known] = []
    for _ in range(EXCHANGES):
        queue = queue or rng.sample(facts, len(facts))
        relation, fact = queue.pop()
        others = [pair for pair in known[fact.subject] if pair[1] != fact]
        if not others or rng.random() < 0.4:
            others = [(relation, other) for other in relation.facts if other != fact]
        rest = rng.sample(others, min(len(others), rng.randint(2, 3)))
        first, second, gap = rng.choice(EXCHANGE_FORMS[relation.lang])
        pairs = [_asked(rng, *pair) for pair in [(relation, fact), *rest]]
        yield "\n".join(f"{first}{question}{gap}{second}{answer}" for question, answer in pairs)


def _dialogues(rng: random.Random, relations: list[Relation]) -> Iterator[str]:
    """Two people ask and answer, in training words."""
    chosen = [r for r in relations if r.lang == "zh" and not r.name.startswith("about_")]
    facts = [(relation, fact) for relation in chosen for fact in relation.facts]
    queue: list[Known] = []
    for _ in range(DIALOGUES):
        asker, teller = rng.sample(PUPILS, 2)
        lines = []
        for _ in range(rng.randint(2, 3)):
            queue = queue or rng.sample(facts, len(facts))
            relation, fact = queue.pop()
            question, answer = _asked(rng, relation, fact)
            lines += [f"{asker}：{question}", f"{teller}：{answer}"]
        yield "\n".join(lines)


def _stories(rng: random.Random, lang: str, count: int) -> Iterator[str]:
    plots = load_plots(lang)
    seen: set[str] = set()
    while len(seen) < count:
        _, story = plots[len(seen) % len(plots)].tell(rng)
        if story not in seen:
            seen.add(story)
            yield story


def _calendars(rng: random.Random) -> Iterator[str]:
    """Weeks and months as a calendar tells them."""
    sections = {title: body for title, _, body in read_sections("calendar.txt")}
    week = alternatives(sections.pop("week"))
    seasons = {name: line.split("|") for name, (line,) in sections.items()}
    for _ in range(250):
        start = rng.randrange(7)
        days = [week["day"][(start + i) % 7] for i in range(rng.randint(3, 6))]
        plan = [f"{day}{doing}" for day, doing in zip(days, rng.sample(week["doing"], len(days)), strict=True)]
        yield rng.choice(week["title"]) + "，".join(plan) + "。"
    for _ in range(120):
        name = rng.choice(list(seasons))
        yield f"{name}来了。" + "。".join(rng.sample(seasons[name], 3)) + f"。我爱{name}。"


def _poems(rng: random.Random) -> Iterator[str]:
    """Each poem whole, with and without what it is called."""
    for poem in load_poems():
        for _ in range(POEMS):
            title = rng.choice(("", f"《{poem.title}》，{poem.author}。", f"{poem.author}的《{poem.title}》："))
            yield f"{title}{poem.text}"
