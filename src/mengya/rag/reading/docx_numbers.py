"""Automatic numbers of paragraphs in Word files, which stand nowhere in the text: counted as Word counts them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mengya.rag.reading.numerals import numeral
from mengya.rag.reading.office import attribute, child, is_on, tag, value

_LEVELS = 9


@dataclass(frozen=True)
class _Level:
    start: int = 1
    form: str = "decimal"
    text: str = ""
    """ "%1.%2": with the numbers of levels in place of %1 and %2."""
    restart: int | None = None
    """The level, counted from 1, after which it begins again; 0 never; None after any higher one."""
    digits: bool = False
    """All its numbers in digits (w:isLgl)."""
    suffix: str = "tab"
    style: str = ""


@dataclass
class _List:
    levels: dict[int, _Level]
    counts: list[int | None] = field(default_factory=lambda: [None] * _LEVELS)
    """What each level shows now; lists of the same definition go on counting."""
    style: str = ""
    """Name of the style that has the levels instead."""


@dataclass
class _Instance:
    list_id: str
    starts: dict[int, int]
    levels: dict[int, _Level]
    used: set[int] = field(default_factory=set)


class Numbers:
    """The counters of a document. Call `next` once a numbered paragraph, in the order of the text."""

    def __init__(self, root: Any, list_of_style: Callable[[str], str | None]) -> None:
        """`root`: of numbering.xml, or None. `list_of_style`: the number of the list that a style names."""
        self._lists: dict[str, _List] = {}
        self._instances: dict[str, _Instance] = {}
        self._list_of_style = list_of_style
        for element in root if root is not None else ():
            if tag(element) == "abstractNum":
                levels = {int(attribute(one, "ilvl", "0")): _level(one) for one in element if tag(one) == "lvl"}
                found = _List(levels, style=value(element, "numStyleLink") or "")
                self._lists[attribute(element, "abstractNumId")] = found
            elif tag(element) == "num":
                self._instances[attribute(element, "numId")] = _instance(element)

    def level_of_style(self, number_id: str, style: str) -> int:
        """Of a style that names a list but no level: the level that names the style."""
        found = self._find(number_id)
        levels = found[1].levels if found else {}
        return next((index for index, level in levels.items() if style and level.style == style), 0)

    def next(self, number_id: str, index: int) -> str:
        """What Word shows before the next paragraph of that list and level, with a space behind it; "" if nothing."""
        found = self._find(number_id)
        if found is None or not 0 <= index < _LEVELS:
            return ""
        instance, numbered = found
        levels = numbered.levels | instance.levels
        level = levels.get(index)
        if level is None:
            return ""
        counts = numbered.counts
        if index in instance.starts and index not in instance.used:
            counts[index] = None
            levels[index] = level = _started(level, instance.starts[index])
        instance.used.add(index)
        current = counts[index]
        counts[index] = level.start if current is None else current + 1
        for deeper in range(index + 1, _LEVELS):
            restart = levels[deeper].restart if deeper in levels else None
            if restart is None or index < restart:
                counts[deeper] = None
        for higher in range(index):  # a level that was skipped shows its first number
            if counts[higher] is None and higher in levels:
                counts[higher] = levels[higher].start
        return _shown(level, levels, counts)

    def _find(self, number_id: str) -> tuple[_Instance, _List] | None:
        for _ in range(5):  # a list may name a style that names another list
            instance = self._instances.get(number_id)
            numbered = self._lists.get(instance.list_id) if instance else None
            if instance is None or numbered is None:
                return None
            if numbered.levels or not numbered.style:
                return instance, numbered
            number_id = self._list_of_style(numbered.style) or ""
        return None


def _started(level: _Level, start: int) -> _Level:
    return _Level(start, level.form, level.text, level.restart, level.digits, level.suffix, level.style)


def _shown(level: _Level, levels: dict[int, _Level], counts: list[int | None]) -> str:
    if level.form == "bullet":
        return "• "

    def number(match: re.Match) -> str:
        index = int(match[1]) - 1
        form = "decimal" if level.digits else levels.get(index, level).form
        count = counts[index]
        return "" if count is None else numeral(count, form)

    text = re.sub("%([1-9])", number, level.text)
    return text + " " if text and level.suffix != "nothing" and text[-1] not in "、，。：" else text


def _level(element: Any) -> _Level:
    restart = value(element, "lvlRestart")
    return _Level(
        _integer(value(element, "start"), 1),
        _form(element),
        value(element, "lvlText") or "",
        None if restart is None else _integer(restart, 0),
        is_on(element, "isLgl"),
        value(element, "suff") or "tab",
        value(element, "pStyle") or "",
    )


def _form(level: Any) -> str:
    form = value(level, "numFmt")
    if form is None:  # newer forms stand in an alternative
        form = value(level, "AlternateContent", "Fallback", "numFmt")
    return form or "decimal"


def _instance(element: Any) -> _Instance:
    starts, levels = {}, {}
    for override in element:
        if tag(override) == "lvlOverride":
            index = _integer(attribute(override, "ilvl"), 0)
            if (start := value(override, "startOverride")) is not None:
                starts[index] = _integer(start, 1)
            if (level := child(override, "lvl")) is not None:
                levels[index] = _level(level)
    return _Instance(value(element, "abstractNumId") or "", starts, levels)


def _integer(text: str | None, default: int) -> int:
    return int(text) if text and text.lstrip("-").isdigit() else default
