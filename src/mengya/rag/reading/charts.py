"""Charts and diagrams of Office files, which lie in parts of their own: words as text, numbers as a table."""

import re
from collections.abc import Iterator
from typing import Any

from mengya.rag.reading.draft import Draft
from mengya.rag.reading.office import Parts, attribute, child


def drawn(parts: Parts, part: str, frame: Any) -> Iterator[Any]:
    """The roots of the charts and diagrams that a frame of a part shows."""
    named = {text for one in frame.iter() for key, text in one.attrib.items() if key.startswith("{")}
    for relation, (kind, name) in parts.relations(part).items():
        if relation in named and kind in ("chart", "chartEx", "diagramData"):
            yield parts.xml(name)


def add_drawn(draft: Draft, root: Any, page: int | None = None) -> None:
    draft.text(words(root), page)
    draft.table(_series(root), page)


def words(root: Any) -> str:
    """Of a diagram, or the titles of a chart."""
    texts = ["".join(t.text or "" for t in paragraph.iter("{*}t")) for paragraph in root.iter("{*}p")]
    return "\n".join(dict.fromkeys(filter(None, texts)))


def _series(root: Any) -> list[list[str]]:
    """What a chart shows, as a table: a row a category, a column a series."""
    columns: dict[str, dict[int, str]] = {}
    labels: dict[int, str] = {}
    for number, (name, shown, values) in enumerate(_newer(root), 1):
        labels |= shown
        columns[f"{number} {name}"] = values
    for number, series in enumerate(root.iter("{*}ser"), 1):
        names = _points(child(series, "tx")) or {}
        labels |= _points(child(series, "cat")) or _points(child(series, "xVal"))
        values = _points(child(series, "val")) or _points(child(series, "yVal"))
        columns[f"{number} {names.get(0, '')}"] = values
    rows = sorted(labels.keys() | {index for values in columns.values() for index in values})
    head = ["", *(name.partition(" ")[2] for name in columns)]
    return (
        [head, *([labels.get(i, ""), *(values.get(i, "") for values in columns.values())] for i in rows)]
        if rows
        else []
    )


def _newer(root: Any) -> Iterator[tuple[str, dict[int, str], dict[int, str]]]:
    """(name, labels, values) of the series of the charts that Office has had since 2016: waterfall, funnel, treemap,
    sunburst, histogram, box. A label of several levels, the innermost of which comes first, is told from without."""
    data = {attribute(one, "id"): one for one in root.iter("{*}data")}
    for series in root.iter("{*}series"):
        named = child(series, "dataId")
        of = data.get(attribute(named, "val")) if named is not None else None
        labels: dict[int, str] = {}
        for level in of.iterfind("{*}strDim/{*}lvl") if of is not None else ():
            for index, text in _points(level).items():
                labels[index] = f"{text} / {labels[index]}" if index in labels else text
        name = child(series, "tx", "txData", "v")
        numbers = of.find("{*}numDim") if of is not None else None
        yield (name.text or "" if name is not None else ""), labels, _points(numbers)


def _points(element: Any) -> dict[int, str]:
    """Index -> value, of those that a chart keeps from its sheet."""
    points = element.iter("{*}pt") if element is not None else ()
    texts = {
        int(attribute(one, "idx", "0")): "".join(v.text or "" for v in one.iter("{*}v")) or one.text or ""
        for one in points
    }
    return {index: f"{float(text):.15g}" if _is_number(text) else text for index, text in texts.items()}


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?\d+\.\d+(E[+-]?\d+)?", text))
