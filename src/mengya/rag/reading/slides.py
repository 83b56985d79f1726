"""PowerPoint files: a page a slide, with tables, grouped shapes, diagrams and the speaker's notes."""

from typing import Any

from mengya.rag.reading.draft import Draft, Source
from mengya.rag.reading.office import Parts, attribute, child, tag


def read(source: Source, draft: Draft) -> None:
    parts = Parts(source.path)
    relations = parts.relations(parts.main)
    slides = []
    listed = child(parts.xml(parts.main), "sldIdLst")
    for one in listed if listed is not None else ():
        slides += [relations[text][1] for key, text in one.attrib.items() if key.startswith("{") and text in relations]
    for number, name in enumerate(slides[: source.limits.pages], 1):
        _Slide(parts, name, draft, number).add()
        source.progress(number, len(slides))
    if len(slides) > source.limits.pages:
        draft.note(f"it has {len(slides):,} slides; only the first {source.limits.pages:,} were read")


class _Slide:
    def __init__(self, parts: Parts, name: str, draft: Draft, number: int) -> None:
        self._parts, self._name, self._draft, self._number = parts, name, draft, number
        self._pictures = 0

    def add(self) -> None:
        root = self._parts.xml(self._name)
        before = len(self._draft.blocks)
        tree = child(root, "cSld", "spTree")
        # The title is read first, wherever it lies in the file.
        shapes = sorted(tree if tree is not None else (), key=lambda shape: not _is_title(shape))
        for shape in shapes:
            self._add_shape(shape)
        for notes in self._parts.related(self._name, "notesSlide"):
            for shape in self._parts.xml(notes).iter("{*}sp"):
                if _placeholder(shape) == "body":
                    self._draft.text(_text(child(shape, "txBody")), self._number)
        found = len(self._draft.blocks) > before
        note = "hidden slide" if attribute(root, "show") in ("0", "false") else ""
        if self._pictures and not found:
            note = "; ".join(filter(None, (note, "pictures alone; save it as PDF to have them read by OCR")))
        self._draft.page(self._number, "text" if found else "unread" if self._pictures else "blank", note=note)

    def _add_shape(self, shape: Any) -> None:
        name = tag(shape)
        if name == "AlternateContent":
            choices = [one for one in shape if tag(one) == "Choice"] or list(shape)[:1]
            for one in choices[0] if choices else ():
                self._add_shape(one)
        elif name == "grpSp":
            for one in shape:
                self._add_shape(one)
        elif name == "pic":
            self._pictures += 1
        elif name in ("sp", "cxnSp"):
            if _is_title(shape):
                self._draft.heading(_text(child(shape, "txBody")), 1, self._number)
            elif _placeholder(shape) not in ("sldNum", "dt", "ftr"):
                self._draft.text(_text(child(shape, "txBody")), self._number)
        elif name == "graphicFrame":
            self._add_frame(shape)

    def _add_frame(self, frame: Any) -> None:
        table = next(frame.iter("{*}tbl"), None)
        if table is not None:
            self._draft.table(_rows(table), self._number)
        for kind in ("diagramData", "chart"):
            for name in self._parts.related(self._name, kind):
                if any(self._parts.relations(self._name)[i][1] == name for i in _references(frame)):
                    self._draft.text(_diagram(self._parts.xml(name)), self._number)


def _references(frame: Any) -> set[str]:
    """Ids of relations that a frame names."""
    texts = {text for one in frame.iter() for key, text in one.attrib.items() if key.startswith("{")}
    return {text for text in texts if text.startswith("rId")}


def _placeholder(shape: Any) -> str:
    for name in ("nvSpPr", "nvCxnSpPr"):
        found = child(shape, name, "nvPr", "ph")
        if found is not None:
            return attribute(found, "type", "body")
    return ""


def _is_title(shape: Any) -> bool:
    return tag(shape) == "sp" and _placeholder(shape) in ("title", "ctrTitle")


def _text(body: Any) -> str:
    """Of a shape or a cell: a line a paragraph."""
    lines = []
    for paragraph in body.iter("{*}p") if body is not None else ():
        pieces = []
        for one in paragraph.iter("{*}t", "{*}br", "{*}tab"):
            pieces.append(one.text or "" if tag(one) == "t" else "\n" if tag(one) == "br" else "\t")
        lines.append("".join(pieces))
    return "\n".join(filter(None, lines))


def _rows(table: Any) -> list[list[str]]:
    """A cell that is merged downward is repeated in each row."""
    rows: list[list[str]] = []
    for row in table.iter("{*}tr"):
        cells: list[str] = []
        for cell in (one for one in row if tag(one) == "tc"):
            goes_on = attribute(cell, "vMerge") in ("1", "true") and rows and len(cells) < len(rows[-1])
            cells.append(rows[-1][len(cells)] if goes_on else _text(child(cell, "txBody")))
        rows.append(cells)
    return rows


def _diagram(root: Any) -> str:
    """The words of a diagram, or the titles and labels of a chart."""
    texts = ["".join(t.text or "" for t in paragraph.iter("{*}t")) for paragraph in root.iter("{*}p")]
    texts += [v.text or "" for cache in root.iter("{*}strCache") for v in cache.iter("{*}v")]
    return "\n".join(dict.fromkeys(filter(None, texts)))
