"""PowerPoint files: a page a slide, with tables, grouped shapes, diagrams and the speaker's notes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from mengya.rag.reading.charts import add_drawn, drawn
from mengya.rag.reading.draft import Draft, Source
from mengya.rag.reading.links import linked
from mengya.rag.reading.office import INSIDE, Parts, attribute, child, tag
from mengya.rag.reading.pictures import UNREAD, described, is_large
from mengya.rag.reading.slide_text import target_of, text_of

_SAME_HEIGHT = 45_720
"""Of shapes side by side: a twentieth of an inch."""


def read(source: Source, draft: Draft) -> None:
    parts = Parts(source.path)
    relations = parts.relations(parts.main)
    slides, left_out, feet = [], Counter[str](), set[str]()
    listed = child(parts.xml(parts.main), "sldIdLst")
    for one in listed if listed is not None else ():
        slides += [relations[text][1] for key, text in one.attrib.items() if key.startswith("{") and text in relations]
    for number, name in enumerate(slides[: source.limits.pages], 1):
        _Slide(parts, name, draft, number, left_out, feet).add()
        source.progress(number, len(slides))
    for what, count in (+left_out).items():
        draft.note(f"left out: {what} ({count})")
    if len(slides) > source.limits.pages:
        draft.note(f"it has {len(slides):,} slides; only the first {source.limits.pages:,} were read")


class _Slide:
    def __init__(
        self, parts: Parts, name: str, draft: Draft, number: int, left_out: Counter[str], feet: set[str]
    ) -> None:
        self._parts, self._name, self._draft, self._number = parts, name, draft, number
        self._left_out, self._feet = left_out, feet
        self._pictures = 0
        self._links = parts.links(name)

    def add(self) -> None:
        root = self._parts.xml(self._name)
        before = len(self._draft.blocks)
        tree = child(root, "cSld", "spTree")
        # The title is read first, wherever it lies.
        shapes = sorted(self._as_seen(tree if tree is not None else ()), key=lambda shape: not _is_title(shape))
        for shape in shapes:
            self._add_shape(shape)
        for notes in self._parts.related(self._name, "notesSlide"):
            links = self._parts.links(notes)
            for shape in self._parts.xml(notes).iter("{*}sp"):
                if _placeholder(shape) == "body":
                    self._draft.text(text_of(child(shape, "txBody"), links), self._number)
        for comments in self._parts.related(self._name, "comments"):
            self._left_out["comments"] += sum(1 for _ in self._parts.xml(comments).iter("{*}cm", "{*}reply"))
        found = len(self._draft.blocks) > before
        note = "hidden slide" if attribute(root, "show") in ("0", "false") else ""
        if self._pictures and not found:
            note = "; ".join(filter(None, (note, "pictures alone; save it as PDF to have them read by OCR")))
        self._draft.page(self._number, "text" if found else "unread" if self._pictures else "blank", note=note)

    def _as_seen(self, shapes: Iterable[Any]) -> list[Any]:
        """From the top to the bottom, and from the left to the right of those that begin at the same height: in a file
        they stand in the order in which they were drawn. One whose place is not told stays behind the one before it."""
        placed: list[tuple[int, int, Any]] = []
        for shape in shapes:
            left, top = self._place(shape) or (placed[-1][:2] if placed else (0, 0))
            placed.append((left, top, shape))
        rows: list[list[tuple[int, int, Any]]] = []
        for one in sorted(placed, key=lambda one: one[1]):
            if rows and one[1] - rows[-1][-1][1] <= _SAME_HEIGHT:
                rows[-1].append(one)
            else:
                rows.append([one])
        return [shape for row in rows for _, _, shape in sorted(row, key=lambda one: one[0])]

    def _place(self, shape: Any) -> tuple[int, int] | None:
        """(left, top), if need be that of the placeholder of the layout, or of the master, that it fills."""
        found = next(shape.iter("{*}off"), None)
        mark = _mark(shape)
        if found is None and mark is not None:
            return self._layout.get(("idx", attribute(mark, "idx"))) or self._layout.get(("type", _placeholder(shape)))
        return None if found is None else (_whole(attribute(found, "x")), _whole(attribute(found, "y")))

    @cached_property
    def _layout(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Places of the placeholders of the layout and of its master, by number and by kind."""
        found: dict[tuple[str, str], tuple[int, int]] = {}
        name: str | None = self._name
        for kind in ("slideLayout", "slideMaster"):
            name = next(self._parts.related(name, kind), None) if name else None
            for shape in self._parts.xml(name).iter("{*}sp", "{*}pic", "{*}graphicFrame") if name else ():
                mark, place = _mark(shape), next(shape.iter("{*}off"), None)
                if mark is not None and place is not None:
                    where = _whole(attribute(place, "x")), _whole(attribute(place, "y"))
                    if kind == "slideLayout":
                        found.setdefault(("idx", attribute(mark, "idx")), where)
                    found.setdefault(("type", _placeholder(shape)), where)
        return found

    def _add_shape(self, shape: Any) -> None:
        name = tag(shape)
        if name == "AlternateContent":
            choices = [one for one in shape if tag(one) == "Choice"] or list(shape)[:1]
            for one in choices[0] if choices else ():
                self._add_shape(one)
        elif name == "grpSp":
            for one in self._as_seen(one for one in shape if tag(one) not in ("nvGrpSpPr", "grpSpPr")):
                self._add_shape(one)
        elif name == "pic":
            self._pictures += 1
            self._left_out[UNREAD] += is_large(shape)
            self._draft.text(described(shape), self._number)
        elif name in ("sp", "cxnSp"):
            if _is_title(shape):
                self._draft.heading(text_of(child(shape, "txBody")), 1, self._number)
            elif _placeholder(shape) == "ftr":
                foot = text_of(child(shape, "txBody"), self._links)
                self._draft.text(foot if foot not in self._feet else "", self._number)
                self._feet.add(foot)
            elif _placeholder(shape) not in ("sldNum", "dt"):
                pressed = next((one for one in shape.iter("{*}cNvPr")), None)
                text = text_of(child(shape, "txBody"), self._links)
                self._draft.text(linked(text, target_of(pressed, self._links)), self._number)
        elif name == "graphicFrame":
            self._add_frame(shape)

    def _add_frame(self, frame: Any) -> None:
        self._left_out[INSIDE] += any(True for _ in frame.iter("{*}oleObj"))
        table = next(frame.iter("{*}tbl"), None)
        if table is not None:
            self._draft.table(_rows(table, self._links), self._number)
        for root in drawn(self._parts, self._name, frame):
            add_drawn(self._draft, root, self._number)


def _mark(shape: Any) -> Any:
    """What says that it is a placeholder; None: it is not."""
    kinds = ("nvSpPr", "nvCxnSpPr", "nvPicPr", "nvGraphicFramePr")
    return next((found for name in kinds if (found := child(shape, name, "nvPr", "ph")) is not None), None)


def _placeholder(shape: Any) -> str:
    mark = _mark(shape)
    return "" if mark is None else attribute(mark, "type", "body")


def _whole(text: str) -> int:
    return int(text) if text.lstrip("-").isdigit() else 0


def _is_title(shape: Any) -> bool:
    return tag(shape) == "sp" and _placeholder(shape) in ("title", "ctrTitle")


def _rows(table: Any, links: Mapping[str, str]) -> list[list[str]]:
    """A cell that is merged downward is repeated in each row."""
    rows: list[list[str]] = []
    for row in table.iter("{*}tr"):
        cells: list[str] = []
        for cell in (one for one in row if tag(one) == "tc"):
            goes_on = attribute(cell, "vMerge") in ("1", "true") and rows and len(cells) < len(rows[-1])
            cells.append(rows[-1][len(cells)] if goes_on else text_of(child(cell, "txBody"), links))
        rows.append(cells)
    return rows
