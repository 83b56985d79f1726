"""Short stories from a grammar of plots (``book/stories.txt``): a plot is a row of steps, each told in several ways
that all fit together, with slots that stay bound from the first sentence to the last."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from mengya.data.schoolbook.tables import read_sections

Slots = list[tuple[list[str], list[list[str]]]]  # ((slot names), [(their values)]) for each "@" line


@dataclass
class Plot:
    """One plot; ``slots`` holds what its text may vary, ``steps`` the ways to tell each step."""

    lang: str
    slots: Slots = field(default_factory=list)
    about: str = ""
    steps: list[list[str]] = field(default_factory=list)

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


def _slot(line: str) -> tuple[list[str], list[list[str]]]:
    names, _, rest = line[1:].partition(" ")
    values = rest.split("|") if "|" in rest else rest.split()
    return names.split("/"), [value.split("/") for value in values]


def load_plots(lang: str) -> list[Plot]:
    """The plots of one language; the slots of [shared] belong to every Chinese plot."""
    plots: list[Plot] = []
    shared: Slots = []
    for title, plot_lang, body in read_sections("stories.txt"):
        plot = Plot(plot_lang)
        for line in body:
            if line.startswith("@"):
                plot.slots.append(_slot(line))
            elif line.startswith("about "):
                plot.about = line.removeprefix("about ")
            else:
                plot.steps.append(line.removeprefix("- ").split("|"))
        if title == "shared":
            shared = plot.slots
            continue
        if plot_lang == "zh":
            plot.slots = shared + plot.slots
        plots.append(plot)
    return [plot for plot in plots if plot.lang == lang]
