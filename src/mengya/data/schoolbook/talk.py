"""The conversations of the schoolbook: facts asked in training words, sums, stories on request, small talk."""

import itertools
import random
from collections.abc import Iterator

from mengya.data.schoolbook import arithmetic, unknown
from mengya.data.schoolbook.stories import load_plots
from mengya.data.schoolbook.tables import Fact, Known, Relation, alternatives, by_subject, read_sections

Talk = dict[str, dict[str, list[str]]]
Turn = tuple[str, str]
Job = tuple[Relation, Fact, str]  # the last is the template of the question
PHRASINGS = 8
"""In how many different training phrasings each fact is asked at least (English ones in two more), half of them from
the relation's own ``ask`` lines: the shared frames say little about how people ask for this relation."""
RELATION_QUESTIONS = 80
"""How many questions a relation gets at least: the fewer its facts, the more phrasings for each, up to all of them."""
ADDITIONS, ADDITIONS_EN, EXERCISES, STORIES, STORIES_EN, CHATS, HONEST = 2500, 250, 1000, 350, 200, 900, 140
SYSTEM_SHARE = 0.06


def load_talk() -> Talk:
    """topic -> {"user": [..], "bot": [..]} of ``book/talk.txt``; some topics have only one of the two."""
    return {title: alternatives(body) for title, _, body in read_sections("talk.txt")}


def conversations(relations: list[Relation], seed: int) -> list[list[dict[str, str]]]:
    """All conversations as message lists, shuffled."""
    rng = random.Random(f"{seed}/talk")
    talk = load_talk()
    dialogues = [
        *_about_facts(rng, relations),
        *_sums(rng),
        *_stories(rng, talk),
        *_chats(rng, talk, relations),
        *([(unknown.ask(rng, relations, held_out=False)[2], rng.choice(unknown.HONEST))] for _ in range(HONEST)),
    ]
    rng.shuffle(dialogues)
    systems = talk["system"]["bot"]
    return [_messages(turns, rng.choice(systems) if rng.random() < SYSTEM_SHARE else None) for turns in dialogues]


def _messages(turns: list[Turn], system: str | None) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return messages


def answer(rng: random.Random, relation: Relation, fact: Fact) -> str:
    """A full sentence; the first way of saying it is twice as frequent as each of the others."""
    return fact.fill(rng.choice([relation.reply[0], *relation.reply]))


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
    least = PHRASINGS + (2 if relation.lang == "en" else 0)
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


def _stories(rng: random.Random, talk: Talk) -> Iterator[list[Turn]]:
    for lang, topic, count in (("zh", "story_request", STORIES), ("en", "story_request_en", STORIES_EN)):
        plots = load_plots(lang)
        for i in range(count):
            about, story = plots[i % len(plots)].tell(rng)
            yield [(rng.choice(talk[topic]["user"]).replace("{about}", about), story)]


def _chats(rng: random.Random, talk: Talk, relations: list[Relation]) -> Iterator[list[Turn]]:
    """Greetings and the like alone, and whole visits: a greeting, a question, thanks."""
    topics = [name for name, lines in talk.items() if "user" in lines and not name.startswith("story")]

    def chat(topic: str) -> Turn:
        return rng.choice(talk[topic]["user"]), rng.choice(talk[topic]["bot"])

    for i in range(CHATS):
        if i % 3:
            yield [chat(topics[i % len(topics)])]
            continue
        relation = rng.choice(relations)
        fact = rng.choice(relation.facts)
        suffix = "_en" if relation.lang == "en" else ""
        question = (fact.fill(rng.choice(relation.train)), answer(rng, relation, fact))
        visit = [chat("greet" + suffix), question, chat("thanks" + suffix), chat("bye" + suffix)]
        yield visit[rng.randrange(2) : rng.randint(3, 4)]
