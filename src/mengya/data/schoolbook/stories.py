"""Short stories from a grammar of plots (``book/stories.txt``): a plot is a row of steps, each told in several ways
that all fit together, with slots that stay bound from the first sentence to the last."""

import random
from dataclasses import dataclass

from mengya.data.schoolbook.tables import grouped, read_sections

Slots = list[tuple[list[str], list[list[str]]]]  # ((slot names), [(their values)]) for each "@" line


@dataclass(frozen=True)
class Plot:
    """One plot; ``slots`` holds what its text may vary, ``steps`` the ways to tell each step."""

    lang: str
    slots: Slots
    about: str
    steps: list[list[str]]

    def tell(self, rng: random.Random) -> tuple[str, str]:
        """(topic, story)."""
        bound: dict[str, str] = {}
        for names, values in self.slots:
            bound.update(zip(names, rng.choice(values), strict=True))
        glue = " " if self.lang == "en" else ""
        story = glue.join(rng.choice(ways) for ways in self.steps)
        topic = self.about
        for name, value in bound.items():
            story, topic = story.replace("{" + name + "}", value), topic.replace("{" + name + "}", value)
        return topic, story


def load_plots(lang: str) -> list[Plot]:
    """The plots of one language; the slots of [shared] belong to every Chinese plot."""
    plots: list[Plot] = []
    shared: Slots = []
    for title, plot_lang, body in read_sections("stories.txt"):
        lines = grouped(body)
        slots: Slots = []
        for key, texts in lines.items():
            if key.startswith("@"):
                values = texts[0].split("|") if "|" in texts[0] else texts[0].split()
                slots.append((key[1:].split("/"), [value.split("/") for value in values]))
        if title == "shared":
            shared = slots
        elif plot_lang == lang:
            slots = shared + slots if lang == "zh" else slots
            plots.append(Plot(lang, slots, lines["about"][0], [ways.split("|") for ways in lines["-"]]))
    return plots
