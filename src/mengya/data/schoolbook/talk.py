"""The conversations of the schoolbook: facts asked in training words, sums, and what people say first."""

import itertools
import random
from collections.abc import Iterator

from mengya.data.schoolbook import arithmetic, topics, unknown
from mengya.data.schoolbook.stories import load_plots
from mengya.data.schoolbook.tables import Fact, Known, Relation, by_subject
from mengya.data.schoolbook.topics import Topic, draw, load_topics

Turn = tuple[str, str]
Job = tuple[Relation, Fact, str]  # the last is the template of the question
PHRASINGS, OF_MANY, MANY = 8, 5, 40
"""In how many different training phrasings each fact is asked at least (English ones in eight more), and each of a
relation that has many facts; half of them from the relation's own ``ask`` lines: the shared frames say little about
how people ask for this relation."""
RELATION_QUESTIONS = 150
"""How many questions a relation gets at least: the fewer its facts, the more phrasings for each, up to all of them."""
ADDITIONS, ADDITIONS_EN, EXERCISES, STORIES, STORIES_EN, VISITS, HONEST = 2400, 200, 500, 120, 60, 350, 160
CHATS = {
    "who": 260,
    "what": 130,
    "maker": 130,
    "story": 120,
    "joke": 100,
    "poem": 80,
    "greet": 170,
    "thanks": 140,
    "bye": 140,
    "mood_bad": 130,
    "mood_good": 130,
    "ability": 150,
    "now": 130,
    "name_en": 150,
    "maker_en": 130,
    "what_en": 130,
}
"""How many conversations begin with a topic; the others have `CHAT` each."""
CHAT = 100
NAMED = 3
"""In how many wordings each name that is not taught is asked about."""
SYSTEM_SHARE = 0.06
INTRODUCED = (
    "province_capital country_capital country_continent country_currency river_continent mountain_province "
    "landmark_city landmark_country animal_class animal_food plant_part flower_season made_from tool_use job_work "
    "festival_date festival_food element_symbol author"
).split()
"""The relations whose subjects are things that one may ask to be told about; `person_job` has the persons."""


def conversations(relations: list[Relation], seed: int) -> list[list[dict[str, str]]]:
    """All conversations as message lists, shuffled."""
    rng = random.Random(f"{seed}/talk")
    talk = load_topics()
    dialogues = [
        *_about_facts(rng, relations),
        *_sums(rng),
        *_stories(rng, talk),
        *_chats(rng, talk),
        *_visits(rng, talk, relations),
        *([turn] for turn in _poems(rng)),
        *([turn] for turn in _names(rng)),
        *([turn] for turn in _introductions(rng, relations)),
        *([(unknown.ask(rng, relations, held_out=False)[2], rng.choice(unknown.HONEST))] for _ in range(HONEST)),
    ]
    rng.shuffle(dialogues)
    systems = talk["system"].bot
    return [as_messages(turns, rng.choice(systems) if rng.random() < SYSTEM_SHARE else None) for turns in dialogues]


def as_messages(turns: list[Turn], system: str | None = None) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return messages


def answer(rng: random.Random, relation: Relation, fact: Fact) -> str:
    """A full sentence; the first way of saying it is twice as frequent as each of the others. What the model says of
    itself it says in one way."""
    return fact.fill(rng.choice([relation.reply[0], *relation.reply]) if len(relation.facts) > 1 else relation.reply[0])


def _about_facts(rng: random.Random, relations: list[Relation]) -> Iterator[list[Turn]]:
    """Each fact in the words of `_phrasings`; about every fifth conversation has two to four turns."""
    known = by_subject(relations)
    jobs = [(relation, fact, template) for relation in relations for fact, template in _phrasings(rng, relation)]
    rng.shuffle(jobs)
    while jobs:
        relation, fact, template = jobs.pop()
        turns = [(fact.fill(template), answer(rng, relation, fact))]
        seen = {fact.id}
        if rng.random() < 0.22:
            for _ in range(rng.randint(1, 3)):
                question, relation, fact = _next_question(rng, relation, fact, known[fact.subject], jobs, seen)
                seen.add(fact.id)
                turns.append((question, answer(rng, relation, fact)))
        yield turns


def _phrasings(rng: random.Random, relation: Relation) -> Iterator[tuple[Fact, str]]:
    """(fact, training template) of every question about the relation; half of a fact's templates are ``ask`` lines,
    dealt in turn so that all are used alike. A relation of a single fact (who the model is) asks everything twice."""
    if len(relation.facts) == 1:
        yield from ((relation.facts[0], template) for template in 2 * relation.train)
        return
    own = relation.phrases["ask"]
    framed = [template for template in relation.train if template not in own]
    least = OF_MANY if len(relation.facts) >= MANY else PHRASINGS + (8 if relation.lang == "en" else 0)
    count = max(least, -(-RELATION_QUESTIONS // len(relation.facts)))
    asks = min(len(own), max(-(-count // 2), count - len(framed)))
    deal = itertools.cycle(rng.sample(own, len(own)))
    for fact in rng.sample(relation.facts, len(relation.facts)):
        chosen = [*itertools.islice(deal, asks), *rng.sample(framed, min(len(framed), count - asks))]
        yield from ((fact, template) for template in chosen)


def _next_question(
    rng: random.Random, relation: Relation, fact: Fact, known: list[Known], jobs: list[Job], seen: set[str]
) -> tuple[str, Relation, Fact]:
    """After a turn about ``fact``: more that is known about its subject, the same about another, or a new topic."""
    pick = rng.random()
    others = [(r, f) for r, f in known if "it" in r.phrases and f.id not in seen]
    if others and pick < 0.45:
        other, same = rng.choice(others)
        return same.fill(rng.choice(other.phrases["it"])), other, same
    alike = [f for f in relation.facts if f.id not in seen and f.attributes == fact.attributes]
    if relation.lang == "zh" and alike and pick < 0.75:
        another = rng.choice(alike)
        return f"那{another.subject}呢？", relation, another
    if jobs and jobs[-1][0].lang == relation.lang:
        new, new_fact, template = jobs.pop()
        return new_fact.fill(template), new, new_fact
    another = rng.choice(relation.facts)
    return another.fill(rng.choice(relation.train)), relation, another


def _sums(rng: random.Random) -> Iterator[list[Turn]]:
    """Two-digit additions, other exercises, and additions that go on from the last result."""
    for a, b in rng.sample(arithmetic.TRAIN_PAIRS, ADDITIONS):
        turns = [(arithmetic.question(rng, a, b), arithmetic.worked(a, b))]
        total = a + b
        while total < 90 and rng.random() < 0.15:
            more = rng.randint(10, 99 - total) if total < 89 else 10
            if arithmetic.is_held_out(total, more):
                break
            ask = rng.choice((f"再加{more}呢？", f"再加上{more}是多少？", f"结果再加{more}等于几？"))
            turns.append((ask, arithmetic.worked(total, more)))
            total += more
        yield turns
    for a, b in rng.sample(arithmetic.TRAIN_PAIRS, ADDITIONS_EN):
        yield [(rng.choice(arithmetic.PHRASES["ask_en"]).format(a=a, b=b), arithmetic.worked(a, b, lang="en"))]
    for _ in range(EXERCISES):
        yield [arithmetic.exercise(rng)]


def _stories(rng: random.Random, talk: dict[str, Topic]) -> Iterator[list[Turn]]:
    """About what is asked for."""
    for lang, name, count in (("zh", "story_request", STORIES), ("en", "story_request_en", STORIES_EN)):
        plots = load_plots(lang)
        for i in range(count):
            about, story = plots[i % len(plots)].tell(rng)
            yield [(talk[name].ask(rng).replace("{about}", about), story)]


def chat(rng: random.Random, topic: Topic) -> Turn:
    return topic.ask(rng), topics.answer(rng, topic)


def _chats(rng: random.Random, talk: dict[str, Topic]) -> Iterator[list[Turn]]:
    """One turn of a topic, and now and then a second about another."""
    alone = [topic for topic in talk.values() if topic.user and not topic.name.startswith("story_request")]
    for topic in alone:
        others = [other for other in alone if other.lang == topic.lang and other is not topic]
        for _ in range(CHATS.get(topic.name, CHAT)):
            turns = [chat(rng, topic)]
            if rng.random() < 0.15:
                turns.insert(rng.randrange(2), chat(rng, rng.choice(others)))
            yield turns


def _visits(rng: random.Random, talk: dict[str, Topic], relations: list[Relation]) -> Iterator[list[Turn]]:
    """A greeting, a question, thanks and a farewell, or some of them."""
    for _ in range(VISITS):
        relation = rng.choice(relations)
        fact = rng.choice(relation.facts)
        suffix = "_en" if relation.lang == "en" else ""
        question = (fact.fill(rng.choice(relation.train)), answer(rng, relation, fact))
        greeting, thanks, bye = (chat(rng, talk[name + suffix]) for name in ("greet", "thanks", "bye"))
        yield [greeting, question, thanks, bye][rng.randrange(2) : rng.randint(3, 4)]


def _poems(rng: random.Random) -> Iterator[Turn]:
    """Each poem asked for, and each line for the one that follows it, in several wordings."""
    asked = topics.load_poem_questions()
    for poem in topics.load_poems():
        for template in rng.sample(asked["whole"], 6):
            yield template.replace("{title}", poem.title).replace("{author}", poem.author), poem.text
        for line, following in poem.following():
            for template in rng.sample(asked["next"], 7):
                yield template.replace("{line}", line), f"{following}。"


def _names(rng: random.Random) -> Iterator[Turn]:
    """People and things that are not taught, and that one does not know them."""
    for names in topics.load_names():
        for lang, found in names.names.items():
            for name in found:
                if not topics.is_held_out(name):
                    for _ in range(NAMED):
                        yield draw(rng, names.ask[lang]).replace("{s}", name), rng.choice(unknown.honest(lang))


def _introductions(rng: random.Random, relations: list[Relation]) -> Iterator[Turn]:
    """What is known of a subject, asked for in the words in which unknown names are."""
    frames = {names.kind: names.ask["zh"] for names in topics.load_names()}
    for subject, known in by_subject([r for r in relations if r.name in (*INTRODUCED, "person_job")]).items():
        chosen = rng.sample(known, min(len(known), 2))
        kind = "person" if any(relation.name == "person_job" for relation, _ in known) else "thing"
        asked = draw(rng, [group for group in frames[kind] if len(group) > 1])
        yield asked.replace("{s}", subject), "".join(fact.fill(relation.reply[0]) for relation, fact in chosen)
