"""Word files: body, tables, text boxes, footnotes at their marks, automatic numbers, headers and footers."""

import re
from collections import Counter
from typing import Any

from mengya.rag.reading.charts import add_drawn, drawn
from mengya.rag.reading.docx_forms import field, in_font, sign
from mengya.rag.reading.docx_links import Fields, target_of, without_marks
from mengya.rag.reading.docx_numbers import Numbers
from mengya.rag.reading.draft import Draft, Source, clean, one_line
from mengya.rag.reading.encodings import decode
from mengya.rag.reading.formulas import formula
from mengya.rag.reading.html import add_html
from mengya.rag.reading.links import linked
from mengya.rag.reading.marks import lowered, merged, raised, struck
from mengya.rag.reading.office import INSIDE, Parts, attribute, child, is_on, tag, value
from mengya.rag.reading.pictures import UNREAD, described, is_large
from mengya.rag.reading.plain import add_text

_THROUGH = (
    *("hyperlink", "ins", "moveTo", "smartTag", "fldSimple", "bdo", "dir"),
    *("customXml", "sdtContent", "sdt", "rubyBase"),
)
"""Elements that only surround text."""
_PAGE_NUMBER = re.compile(r"[\d\s第共页頁/\-–—.·|of]*(page)?[\d\s第共页頁/\-–—.·|of]*", re.IGNORECASE)
_HEADING = re.compile(r"(?:heading|标题|標題)\s*([1-9])", re.IGNORECASE)


def read(source: Source, draft: Draft) -> None:
    parts = Parts(source.path)
    reader = _Reader(parts, draft)
    root = parts.xml(parts.main)
    body = child(root, "body") if root is not None else None
    if body is not None:
        reader.add(body)
    reader.add_margins()
    reader.tell()
    source.progress(1, 1)


class _Reader:
    def __init__(self, parts: Parts, draft: Draft) -> None:
        self._parts, self._draft = parts, draft
        self._styles = _Styles(self._part("styles"))
        self._numbers = Numbers(self._part("numbering"), lambda style: self._styles.get(style, "numId"))
        self._notes = {kind: self._part(kind + "s") for kind in ("footnote", "endnote")}
        self._part_read = parts.main
        self._links_of: dict[str, dict[str, str]] = {}
        self._fields = Fields()
        self._boxes: list[Any] = []
        """Text boxes, charts and diagrams that hang at the paragraph or table that is read."""
        self._left_out: Counter[str] = Counter()

    def _part(self, kind: str) -> Any:
        name = next(self._parts.related(self._parts.main, kind), None)
        return None if name is None else self._parts.xml(name)

    # --- blocks -------------------------------------------------------------------------------------------------------

    def add(self, element: Any) -> None:
        """The paragraphs and tables below `element`."""
        before = ""  # of a paragraph whose end was deleted
        for one in element:
            name = tag(one)
            if name == "p":
                text, level = self._paragraph(one)
                text, before = before + text, ""
                if child(one, "pPr", "rPr", "del") is not None:
                    before = text
                elif level:
                    self._draft.heading(text, level)
                else:
                    self._draft.text(text)
                self._add_boxes()
            elif name == "tbl":
                self._add_table(one)
                self._add_boxes()
            elif name == "AlternateContent":
                self.add(_alternative(one))
            elif name == "altChunk":
                self._add_chunk(attribute(one, "id"))
            elif name in _THROUGH and not _is_prompt(one):
                self.add(one)
        self._draft.text(before)

    def _add_chunk(self, relation: str) -> None:
        """A page, or a text, that a program has put into the file whole, for Word to take apart."""
        _, part = self._parts.relations(self._parts.main).get(relation, ("", ""))
        data = self._parts.read(part) if part else b""
        if part.lower().endswith((".html", ".htm", ".xhtml")):
            add_html(self._draft, data)
        elif part.lower().endswith(".txt"):
            add_text(self._draft, clean(decode(data)[0]))
        else:
            self._left_out[INSIDE] += 1

    def _add_boxes(self) -> None:
        boxes, self._boxes = self._boxes, []
        for box in boxes:
            if tag(box) == "txbxContent":
                self.add(box)
            else:
                add_drawn(self._draft, box)

    def _add_table(self, table: Any) -> None:
        rows = self._rows(table)
        if sum(map(len, rows)) == 1:  # a frame around text
            self.add(next(cell for row in _below(table, "tr") for cell in _below(row, "tc")))
        else:
            self._draft.table(rows)

    def _rows(self, table: Any) -> list[list[str]]:
        """A cell that is merged downward is repeated in each row; one that is merged to the right leaves empty ones."""
        rows: list[list[str]] = []
        for row in _below(table, "tr"):
            if child(row, "trPr", "del") is not None:
                self._left_out["deleted passages (tracked changes)"] += 1
                continue
            cells = [""] * _integer(value(row, "trPr", "gridBefore"))
            for cell in _below(row, "tc"):
                if child(cell, "tcPr", "cellDel") is not None:
                    self._left_out["deleted passages (tracked changes)"] += 1
                    continue
                merge = value(cell, "tcPr", "vMerge")
                above = rows[-1][len(cells)] if rows and len(cells) < len(rows[-1]) else ""
                cells.append(above if merge in ("", "continue") else self._cell(cell))
                cells += [""] * (max(1, _integer(value(cell, "tcPr", "gridSpan"))) - 1)
            rows.append(cells)
        return rows

    def _cell(self, element: Any) -> str:
        """All text of a cell, tables inside it too."""
        texts = []
        for one in element:
            if tag(one) == "p":
                texts.append(self._paragraph(one)[0])
            elif tag(one) == "tbl":
                texts += [" ".join(filter(None, row)) for row in self._rows(one)]
            elif tag(one) in _THROUGH and not _is_prompt(one):
                texts.append(self._cell(one))
        return "\n".join(filter(None, texts))

    def _paragraph(self, paragraph: Any) -> tuple[str, int]:
        """(its text with its number, its level as a heading or 0)."""
        properties = child(paragraph, "pPr")
        style = value(properties, "pStyle") if properties is not None else None
        style = style or self._styles.default
        text = merged(without_marks(self._inline(paragraph)))
        if text.strip() and self._styles.is_hidden(style):
            self._left_out["hidden passages"] += 1
            text = ""
        if not text.strip():
            return "", 0
        number = self._number(properties, style)
        own = value(properties, "outlineLvl") if properties is not None else None
        return number + text.strip(), self._styles.heading_level(style, own)

    def _number(self, properties: Any, style: str) -> str:
        numbering = child(properties, "numPr") if properties is not None else None
        number_id = value(numbering, "numId") if numbering is not None else None
        index = value(numbering, "ilvl") if numbering is not None else None
        if number_id is None:
            number_id = self._styles.get(style, "numId")
            if index is None:
                index = self._styles.get(style, "ilvl")
        if number_id in (None, "", "0"):
            return ""
        level = _integer(index) if index else self._numbers.level_of_style(number_id, style)
        return self._numbers.next(number_id, level)

    # --- text ---------------------------------------------------------------------------------------------------------

    def _inline(self, element: Any) -> str:
        return "".join(self._piece(one) for one in element)

    def _piece(self, one: Any) -> str:
        name = tag(one)
        if name == "r":
            properties = child(one, "rPr")
            if properties is not None and self._is_hidden(properties):
                self._left_out["hidden passages"] += 1
                return ""
            return _marked(in_font(self._inline(one), properties), one, properties)
        if name == "t":
            return one.text or ""
        if name in _CHARACTERS:
            return _CHARACTERS[name]
        if name == "br":
            return "\n"
        if name == "sym":
            return sign(attribute(one, "font"), int(attribute(one, "char", "0") or "0", 16))
        if name == "hyperlink":
            return linked(self._inline(one), self._links().get(attribute(one, "id")))
        if name == "fldSimple":
            return linked(self._inline(one), target_of(attribute(one, "instr")))
        if name == "instrText":
            self._fields.instruct(one.text or "")
            return ""
        if name == "fldChar":
            return self._fields.mark(one) + field(one)
        if name in ("footnoteReference", "endnoteReference"):
            return self._note(name.removesuffix("Reference"), attribute(one, "id"))
        if name in ("del", "moveFrom"):
            self._left_out["deleted passages (tracked changes)"] += 1
            return ""
        if name == "commentReference":
            self._left_out["comments"] += 1
            return ""
        if name in ("drawing", "pict", "object"):
            self._boxes += [*_outermost(one, "txbxContent"), *drawn(self._parts, self._part_read, one)]
            self._left_out[INSIDE] += any(True for _ in one.iter("{*}OLEObject"))
            return self._picture(one)
        if name in ("oMath", "oMathPara"):
            return formula(one)
        if name == "AlternateContent":
            return self._inline(_alternative(one))
        return self._inline(one) if (name in _THROUGH and not _is_prompt(one)) or name == "ruby" else ""

    def _is_hidden(self, properties: Any) -> bool:
        """Whether a run is, by itself or by its style."""
        if child(properties, "vanish") is not None:
            return is_on(properties, "vanish")
        return self._styles.is_hidden(value(properties, "rStyle") or "")

    def _picture(self, drawing: Any) -> str:
        """Words that are drawn, and what somebody has written for those who do not see it."""
        self._left_out[UNREAD] += is_large(drawing) and any(True for _ in drawing.iter("{*}blip"))
        return "".join(attribute(one, "string") for one in drawing.iter("{*}textpath")) + described(drawing)

    def _note(self, kind: str, number: str) -> str:
        for one in self._notes[kind] if self._notes[kind] is not None else ():
            if attribute(one, "id") == number:
                text = self._apart(next(self._parts.related(self._parts.main, kind + "s"), ""), one)
                return f"〔注：{one_line(text)}〕" if text.strip() else ""
        self._left_out["footnotes that the file lacks"] += 1
        return ""

    def _apart(self, part: str, element: Any) -> str:
        """All text of an element of another part, which has links of its own."""
        before, self._part_read = self._part_read, part
        try:
            return self._cell(element)
        finally:
            self._part_read = before

    def _links(self) -> dict[str, str]:
        part = self._part_read
        if part not in self._links_of:
            self._links_of[part] = self._parts.links(part)
        return self._links_of[part]

    # --- what stands around -------------------------------------------------------------------------------------------

    def add_margins(self) -> None:
        """Headers and footers, each once, but for those that only number pages."""
        seen = set()
        for kind in ("header", "footer"):
            for name in self._parts.related(self._parts.main, kind):
                text = self._apart(name, self._parts.xml(name))
                boxes, self._boxes = self._boxes, []
                for part in (text, *map(self._cell, boxes)):
                    if part.strip() and part not in seen and not _PAGE_NUMBER.fullmatch(part):
                        seen.add(part)
                        self._draft.text(part)

    def tell(self) -> None:
        for what, count in (+self._left_out).items():
            self._draft.note(f"left out: {what} ({count})")
        if (
            not self._draft.blocks
            and not self._left_out[UNREAD]
            and any(self._parts.related(self._parts.main, "image"))
        ):
            self._draft.note(f"it holds {UNREAD}")


_CHARACTERS = {"tab": "\t", "ptab": "\t", "cr": "\n", "noBreakHyphen": "-"}


class _Styles:
    def __init__(self, root: Any) -> None:
        self._styles = {
            attribute(one, "styleId"): one for one in (root if root is not None else ()) if tag(one) == "style"
        }
        self.default = next(
            (
                name
                for name, one in self._styles.items()
                if attribute(one, "default") and attribute(one, "type") == "paragraph"
            ),
            "",
        )

    def get(self, style: str, key: str) -> str | None:
        """ "numId", "ilvl" or "outlineLvl" of a style, or of one that it is based on."""
        path = ("pPr", "outlineLvl") if key == "outlineLvl" else ("pPr", "numPr", key)
        for one in self._line(style):
            found = value(one, *path)
            if found is not None:
                return found
        return None

    def is_hidden(self, style: str) -> bool:
        runs = (child(one, "rPr") for one in self._line(style))
        return next(
            (is_on(one, "vanish") for one in runs if one is not None and child(one, "vanish") is not None), False
        )

    def heading_level(self, style: str, own: str | None) -> int:
        level = own if own is not None else self.get(style, "outlineLvl")
        if level is not None and level.isdigit():
            return int(level) + 1 if int(level) < 9 else 0
        for one in self._line(style):
            name = value(one, "name") or ""
            if found := _HEADING.match(name):
                return int(found[1])
            if name.lower() == "title":
                return 1
        return 0

    def _line(self, style: str) -> list[Any]:
        """A style and those it is based on."""
        line: list[Any] = []
        while style in self._styles and self._styles[style] not in line:
            line.append(self._styles[style])
            style = value(line[-1], "basedOn") or ""
        return line


def _marked(text: str, run: Any, properties: Any) -> str:
    """The text of a run with what its place and a line through it mean."""
    if properties is None or child(run, "t") is None:
        return text
    place = value(properties, "vertAlign")
    text = raised(text) if place == "superscript" else lowered(text) if place == "subscript" else text
    return struck(text) if is_on(properties, "strike") or is_on(properties, "dstrike") else text


def _alternative(element: Any) -> Any:
    """One of the two ways in which newer Word writes the same thing."""
    return next((one for one in element if tag(one) == "Choice"), element[0] if len(element) else element)


def _is_prompt(element: Any) -> bool:
    """A field that nobody has filled in, with what it asks for."""
    properties = child(element, "sdtPr")
    return properties is not None and is_on(properties, "showingPlcHdr")


def _below(element: Any, name: str) -> list[Any]:
    """Children of that tag, also inside elements that only surround."""
    found = []
    for one in element:
        if tag(one) == name:
            found.append(one)
        elif tag(one) in _THROUGH:
            found += _below(one, name)
    return found


def _outermost(element: Any, name: str) -> list[Any]:
    """Those of that tag which are not inside another; of alternatives one."""
    if tag(element) == name:
        return [element]
    inside = _alternative(element) if tag(element) == "AlternateContent" else element
    return [found for one in inside for found in _outermost(one, name)]


def _integer(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
