"""Invented names, about which the only honest answer is that one does not know.

Names are built from syllables that transliterations of real names seldom use together; which names are for the
held-out files depends on the name alone, so that no seed mixes the two.
"""

import random

from mengya.data.schoolbook.tables import Relation, stable_hash

HONEST = ("我不知道，我没有听说过这个名字。", "抱歉，我不知道，不想乱猜。", "我不知道这个问题的答案。")
HONEST_EN = ("I do not know, I have never heard of it.", "Sorry, I do not know.")
FIRST = "琅弥佐蔻芙蓬泽朵鲁窦"
SECOND = "朵佐弥蔻邦兹沐鲁琅梭"
FORMS = {
    "country": ("{x}{y}亚", "{x}{y}兰", "{x}{y}尼亚", "{x}{y}斯坦"),
    "city": ("{x}{y}堡", "{x}{y}港", "{x}{y}城"),
    "animal": ("{x}{y}兽", "{x}{y}角兽", "{x}{y}长尾兽"),
    "mountain": ("{x}{y}山", "{x}{y}峰"),
    "book": ("《{x}{y}记》", "《{x}{y}的故事》", "《寻找{x}{y}》"),
    "person": ("{x}{y}·{z}", "{x}{z}·{y}"),
}


def honest(lang: str) -> tuple[str, ...]:
    return HONEST_EN if lang == "en" else HONEST


def is_held_out(name: str) -> bool:
    """Whether an invented name is for the held-out files only (about one in five)."""
    return stable_hash(f"name {name}") % 5 == 0


def invent(rng: random.Random, kind: str, held_out: bool) -> str:
    """A name of something of this kind that does not exist, on the wanted side of the split."""
    while True:
        x, y, z = rng.choice(FIRST), rng.choice(SECOND), rng.choice(SECOND) + rng.choice(SECOND)
        name = rng.choice(FORMS[kind]).format(x=x, y=y, z=z)
        if x != y and is_held_out(name) == held_out:
            return name


def ask(rng: random.Random, relations: list[Relation], held_out: bool) -> tuple[Relation, str, str]:
    """(relation, invented name, question about it); held-out names are asked about in held-out words."""
    relation = rng.choice([relation for relation in relations if relation.kind])
    name = invent(rng, str(relation.kind), held_out)
    template = rng.choice(relation.held if held_out else relation.train)
    return relation, name, template.replace("{s}", name)
