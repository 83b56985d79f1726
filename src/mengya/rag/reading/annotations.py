"""What lies over a page of a PDF file and is no part of its text: links, filled-in fields, text boxes, comments."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from mengya.rag.reading.draft import one_line

_MOST = 5_000
"""Of a page that are looked at."""
_LINE = 12.0
"""Points of height that a line of a text box or field is taken to have."""


class Box(NamedTuple):
    """On the page, y upward."""

    left: float
    bottom: float
    right: float
    top: float

    def holds(self, x: float, y: float) -> bool:
        return self.left <= x <= self.right and self.bottom <= y <= self.top


@dataclass(frozen=True)
class Over:
    """What lies over a page."""

    links: list[tuple[Box, str]] = field(default_factory=list)
    """A box for each line of its words, and where it leads."""
    written: list[tuple[Box, str]] = field(default_factory=list)
    """Lines of filled-in fields and of text boxes."""
    comments: list[str] = field(default_factory=list)
    struck: list[Box] = field(default_factory=list)
    """A box for each line of words that are crossed out."""


def read_over(pdf: Any, page: Any) -> Over:
    import pypdfium2.raw as raw

    over = Over(list(_links(pdf, page)))
    shown = (raw.FPDF_ANNOT_WIDGET, raw.FPDF_ANNOT_FREETEXT, raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP)
    for index in range(min(raw.FPDFPage_GetAnnotCount(page), _MOST)):
        with _annotation(page, index) as annotation:
            kind = raw.FPDFAnnot_GetSubtype(annotation)
            if raw.FPDFAnnot_GetFlags(annotation) & (raw.FPDF_ANNOT_FLAG_HIDDEN | raw.FPDF_ANNOT_FLAG_NOVIEW):
                continue
            if kind == raw.FPDF_ANNOT_WIDGET:
                over.written.extend(_lines(annotation, _filled_in(pdf, annotation)))
            elif kind == raw.FPDF_ANNOT_FREETEXT:
                over.written.extend(_lines(annotation, _contents(annotation)))
            elif kind == raw.FPDF_ANNOT_STRIKEOUT:
                over.struck.extend(_struck(annotation))
            if kind not in shown and (text := one_line(_contents(annotation))):
                over.comments.append(text)
    return over


def _struck(annotation: Any) -> Iterator[Box]:
    import pypdfium2.raw as raw

    quad = raw.FS_QUADPOINTSF()
    for i in range(raw.FPDFAnnot_CountAttachmentPoints(annotation)):
        if raw.FPDFAnnot_GetAttachmentPoints(annotation, i, quad):
            yield _around(quad)


def _around(quad: Any) -> Box:
    across, up = (quad.x1, quad.x2, quad.x3, quad.x4), (quad.y1, quad.y2, quad.y3, quad.y4)
    return Box(min(across), min(up), max(across), max(up))


@contextmanager
def _annotation(page: Any, index: int) -> Iterator[Any]:
    import pypdfium2.raw as raw

    annotation = raw.FPDFPage_GetAnnot(page, index)
    try:
        yield annotation
    finally:
        raw.FPDFPage_CloseAnnot(annotation)


def _links(pdf: Any, page: Any) -> Iterator[tuple[Box, str]]:
    import pypdfium2.raw as raw

    place, link, quad, rect = ctypes.c_int(0), raw.FPDF_LINK(), raw.FS_QUADPOINTSF(), raw.FS_RECTF()
    for _ in range(_MOST):
        if not raw.FPDFLink_Enumerate(page, place, link):
            return
        action = raw.FPDFLink_GetAction(link)
        if not action or raw.FPDFAction_GetType(action) != raw.PDFACTION_URI:
            continue
        target = _text(partial(raw.FPDFAction_GetURIPath, pdf, action), "utf-8")
        lines = raw.FPDFLink_CountQuadPoints(link)
        for i in range(lines):
            if raw.FPDFLink_GetQuadPoints(link, i, quad):
                yield _around(quad), target
        if not lines and raw.FPDFLink_GetAnnotRect(link, rect):
            yield _box(rect), target


def _filled_in(pdf: Any, annotation: Any) -> str:
    """What stands in a field: its text, its choice, or whether it is ticked; nothing of buttons and signatures."""
    import pypdfium2.raw as raw

    form = pdf.formenv
    kind = raw.FPDFAnnot_GetFormFieldType(form, annotation) if form else raw.FPDF_FORMFIELD_UNKNOWN
    if kind in (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON):
        return "☑" if raw.FPDFAnnot_IsChecked(form, annotation) else "☐"
    if kind in (raw.FPDF_FORMFIELD_TEXTFIELD, raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX):
        return _text(partial(raw.FPDFAnnot_GetFormFieldValue, form, annotation))
    return ""


def _contents(annotation: Any) -> str:
    import pypdfium2.raw as raw

    return _text(partial(raw.FPDFAnnot_GetStringValue, annotation, b"Contents"))


def _text(ask: Callable[[Any, int], int], encoding: str = "utf-16-le") -> str:
    """What PDFium writes into a buffer of as many bytes as it says first."""
    import pypdfium2.raw as raw

    size = ask(None, 0)
    buffer = ctypes.create_string_buffer(size)
    kind = ctypes.POINTER(raw.FPDF_WCHAR) if encoding == "utf-16-le" else ctypes.c_void_p
    ask(ctypes.cast(buffer, kind), size)
    return buffer.raw.decode(encoding, "replace").rstrip("\0")


def _lines(annotation: Any, text: str) -> Iterator[tuple[Box, str]]:
    """From the top of its rectangle, or in the middle of one with a single line."""
    import pypdfium2.raw as raw

    rect = raw.FS_RECTF()
    lines = [line for line in map(one_line, text.replace("\r", "\n").split("\n")) if line]
    if not lines or not raw.FPDFAnnot_GetRect(annotation, rect):
        return
    box = _box(rect)
    top = box.top if len(lines) > 1 else (box.top + box.bottom + _LINE) / 2
    for i, line in enumerate(lines):
        yield Box(box.left, top - (i + 1) * _LINE + 1, box.right, top - i * _LINE), line


def _box(rect: Any) -> Box:
    left, right = sorted((rect.left, rect.right))
    bottom, top = sorted((rect.bottom, rect.top))
    return Box(left, bottom, right, top)
