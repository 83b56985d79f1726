"""The text of a shape or a cell of a slide: a line a paragraph, with its automatic number."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from mengya.rag.reading.formulas import formula
from mengya.rag.reading.links import linked
from mengya.rag.reading.marks import lowered, merged, raised, struck
from mengya.rag.reading.numerals import numeral
from mengya.rag.reading.office import attribute, child, tag

_FORMS = {
    "arabic": "decimal", "alphaLc": "lowerLetter", "alphaUc": "upperLetter", "romanLc": "lowerRoman",
    "romanUc": "upperRoman", "circleNum": "decimalEnclosedCircle", "ea1": "chineseCounting",
}  # fmt: skip
"""How the name of an automatic number begins -> the form of Word that it has."""


def text_of(body: Any, links: Mapping[str, str] | None = None) -> str:
    """With where `links` lead, by id."""
    lines, numbers = [], _Numbers()
    for paragraph in body.iter("{*}p") if body is not None else ():
        pieces = [piece for one in paragraph for piece in _pieces(one, links or {})]
        runs = [(target, "".join(text for text, _ in group)) for target, group in groupby(pieces, lambda one: one[1])]
        line = merged("".join(linked(text, target) for target, text in runs))
        lines.append(numbers.next(child(paragraph, "pPr")) + line if line.strip() else "")
    return "\n".join(filter(None, lines))


def target_of(properties: Any, links: Mapping[str, str]) -> str:
    """Where one comes who presses it; "" if nowhere, or to another slide."""
    pressed = child(properties, "hlinkClick")
    return "" if pressed is None else links.get(attribute(pressed, "id"), "")


def _pieces(one: Any, links: Mapping[str, str]) -> list[tuple[str, str]]:
    """(text, where it leads) of a part of a paragraph."""
    name = tag(one)
    if name == "br":
        return [("\n", "")]
    if name in ("r", "fld"):
        properties = child(one, "rPr")
        text = "".join(t.text or "" for t in one if tag(t) == "t")
        return [(_marked(text, properties), target_of(properties, links))]
    if name in ("AlternateContent", "Choice", "m"):  # the first of several ways to show the same
        inside = list(one)[: 1 if name == "AlternateContent" else None]
        return [piece for part in inside for piece in _pieces(part, links)]
    return [(formula(one), "")] if name in ("oMath", "oMathPara") else []


def _marked(text: str, properties: Any) -> str:
    if properties is None:
        return text
    height = attribute(properties, "baseline", "0")
    if height not in ("0", "0%"):
        text = lowered(text) if height.startswith("-") else raised(text)
    return struck(text) if attribute(properties, "strike", "noStrike") != "noStrike" else text


class _Numbers:
    """Automatic numbers of the paragraphs of one shape, counted as PowerPoint counts them."""

    def __init__(self) -> None:
        self._counts: dict[int, tuple[str, int]] = {}
        """Level -> (how its numbers are written and begin, the last one)."""

    def next(self, properties: Any) -> str:
        """Of a paragraph that is not empty."""
        level = int(attribute(properties, "lvl", "0")) if properties is not None else 0
        automatic = child(properties, "buAutoNum")
        self._counts = {one: count for one, count in self._counts.items() if one <= level}
        if automatic is None:
            self._counts.pop(level, None)
            return ""
        form, first = attribute(automatic, "type", "arabicPeriod"), int(attribute(automatic, "startAt", "1"))
        known, last = self._counts.get(level, ("", 0))
        number = last + 1 if known == f"{form} {first}" else first
        self._counts[level] = f"{form} {first}", number
        return _shown(number, form)


def _shown(number: int, form: str) -> str:
    text = numeral(number, next((name for start, name in _FORMS.items() if form.startswith(start)), "decimal"))
    if form.endswith("ParenBoth"):
        return f"({text}) "
    return text + (")" if form.endswith("ParenR") else "." if form.endswith(("Period", "JpnChsDbPeriod")) else "") + " "
