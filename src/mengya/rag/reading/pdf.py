"""PDF files: the text layer in reading order, and OCR of the pages that have none."""

import ctypes
import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mengya.errors import UserError
from mengya.rag.reading.annotations import Over, read_over
from mengya.rag.reading.draft import Draft, Full, Source, State
from mengya.rag.reading.layout import WIDE, Segment, add_page, is_vertical, vertical_lines
from mengya.rag.reading.links import linked
from mengya.rag.reading.marks import lowered, raised, struck
from mengya.rag.reading.ocr import Found, Ocr
from mengya.rag.reading.office import INSIDE
from mengya.rag.reading.running import without_running

_DPI = 200
"""Of pages that are drawn for OCR; fewer where a page is too large."""
_SAMPLE = 120
"""Characters of a page that show which way it is written: each is compared with each."""
_FEW = 30
"""Characters of a text layer that do not make a page that is mostly a picture a page of text: a stamp, a number."""


_LOST = 5
"""Characters that could not be read, from which on a page says so."""
_UNKNOWN = re.compile("[\ufffd\ue000-\uefff\uf100-\uf8ff\x00\x01\x03-\x08\x0e-\x1f]")
_ACCENTED = re.compile("[\x80-\xa6\xaa\xac\xaf\xb3-\xb5\xb8-\xba\xbc-\xff]")
_MARKS = re.compile(r"[!\"#$%&'()*+/:;<=>?@\[\\\]^`{|}~]")


def read(source: Source, draft: Draft) -> None:
    pdf = _open(source)
    total = len(pdf)
    count = min(total, source.limits.pages)
    if count < total:
        draft.note(f"it has {total:,} pages; only the first {count:,} were read")
    if b"%%EOF" not in _tail(source):
        draft.note("the file seems to be cut off; pages may be missing")
    _look_inside(pdf, draft)
    ocr = Ocr(source.limits)
    pages: list[_Page] = []
    characters = 0
    for index in range(count):
        pages.append(page := _read_page(pdf, index, draft, ocr))
        source.progress(index + 1, count)
        characters += sum(len(segment.text) for part in page.parts for segment in part)
        if characters > source.limits.characters:
            break
    _add_pages(pages, draft)
    if len(pages) < count:
        draft.note(f"pages after {len(pages)} were not read")


def _open(source: Source) -> Any:
    import pypdfium2
    import pypdfium2.raw as raw

    try:
        return pypdfium2.PdfDocument(source.path)
    except pypdfium2.PdfiumError as error:
        if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise UserError("it is encrypted; open it with its password and save it without") from error
        raise UserError("this PDF is damaged or cut off, and no page of it can be read; get it again") from error


def _look_inside(pdf: Any, draft: Draft) -> None:
    """What is not on its pages."""
    import pypdfium2.raw as raw

    if pdf.get_formtype() in (raw.FORMTYPE_XFA_FULL, raw.FORMTYPE_XFA_FOREGROUND):
        draft.note("it is an XFA form, which is not read whole; print it as a PDF file to have it read")
    if pdf.get_formtype():
        pdf.init_forms()
    if count := raw.FPDFDoc_GetAttachmentCount(pdf):
        draft.note(f"left out: {INSIDE} ({count})")


def _tail(source: Source) -> bytes:
    with source.path.open("rb") as file:
        file.seek(max(0, source.path.stat().st_size - 4096))
        return file.read()


@dataclass
class _Page:
    number: int
    label: str
    state: State = "text"
    note: str = ""
    parts: list[list[Segment]] = field(default_factory=list)
    """What stands on it, by direction of writing, the commonest first."""
    vertical: str = ""
    """What is written from top to bottom."""
    ocr: Found | None = None
    comments: list[str] = field(default_factory=list)


def _add_pages(pages: list[_Page], draft: Draft) -> None:
    for page, main in zip(pages, without_running([page.parts[0] if page.parts else [] for page in pages]), strict=True):
        page.parts[:1] = main
    sizes: Counter[float] = Counter()  # of the letters, which tell running text from headings
    for segment in (segment for page in pages for part in page.parts for segment in part):
        sizes[round(segment.size, 1)] += len(segment.text)
    usual = sizes.most_common(1)[0][0] if sizes else 0.0
    for page in pages:
        try:
            draft.text(page.vertical, page.number)
            for part in page.parts:
                add_page(draft, part, page.number, usual)
            if page.ocr is not None:
                page.ocr.add(draft, page.number)
            for comment in page.comments:
                draft.text(f"〔注：{comment}〕", page.number)
        except Full:
            draft.note(f"pages after {page.number} were not read")
            raise
        draft.page(page.number, page.state, page.label, page.note)


def _read_page(pdf: Any, index: int, draft: Draft, ocr: Ocr) -> _Page:
    import pypdfium2

    label = pdf.get_page_label(index)
    read = _Page(index + 1, "" if label == str(index + 1) else label)
    try:
        page = pdf[index]
        over = read_over(pdf, page)
        glyphs, slanted = _glyphs(page, over)
        pictures = _pictures(page)
    except pypdfium2.PdfiumError:
        read.state, read.note = "unread", "this page is damaged"
        return read
    if slanted:
        draft.note("slanted text, such as watermarks, was left out")
    read.comments = over.comments
    text = "".join(glyph.text for glyph in glyphs)
    scanned = pictures.cover > 0.5 and len(text.strip()) < _FEW
    lost = _lost(text)
    if (text.strip() or over.written) and not scanned and lost * (5 if ocr.available else 3) <= len(text):
        if lost >= _LOST:
            read.note = f"{lost:,} characters could not be read: their font does not say what they are"
        glyphs += _written(over, glyphs)
        for turned in _turned(_with_addresses(glyphs)):
            _take_text(read, turned)
    else:
        _read_by_ocr(page, read, ocr, pictures)
    page.close()
    return read


# --- the text layer ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Glyph:
    text: str
    left: float
    top: float
    right: float
    bottom: float
    turned: int
    """Quarter turns of the direction of writing, counter-clockwise: 1 is upward."""
    target: str = ""
    """Where it leads who presses it."""
    struck: bool = False
    size: float = 0.0
    """Of its font; 0 if it is not known."""
    line: float = 0.0
    """That it stands on, in the direction from top to bottom."""


def _glyphs(page: Any, over: Over) -> tuple[list[_Glyph], bool]:
    """What can be seen of the text layer in upright places and PDFium's order; whether slanted text was left out."""
    import pypdfium2.raw as raw

    left, bottom, right, top = page.get_cropbox()
    textpage = page.get_textpage()
    glyphs, slanted, high = [], False, 0
    box, across, up = raw.FS_RECTF(), ctypes.c_double(), ctypes.c_double()
    for i in range(textpage.count_chars()):
        code = raw.FPDFText_GetUnicode(textpage, i)
        if 0xD800 <= code < 0xDC00:
            high = code
            continue
        if 0xDC00 <= code < 0xE000 and high:
            code = 0x10000 + ((high - 0xD800) << 10) + code - 0xDC00
        if code in (10, 13) or not raw.FPDFText_GetLooseCharBox(textpage, i, ctypes.byref(box)):
            continue
        quarters = raw.FPDFText_GetCharAngle(textpage, i) / (math.pi / 2)
        if abs(quarters - round(quarters)) > 0.1:
            slanted = True
            continue
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        if left <= x <= right and bottom <= y <= top:
            turned = -round(quarters) % 4  # PDFium counts clockwise
            character = "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)
            target = next((target for place, target in over.links if place.holds(x, y)), "")
            crossed = any(place.holds(x, y) for place in over.struck)
            raw.FPDFText_GetCharOrigin(textpage, i, across, up)
            line = (-up.value, across.value, up.value, -across.value)[turned]
            size = raw.FPDFText_GetFontSize(textpage, i)
            glyphs.append(_Glyph(character, *_upright(box, turned), turned, target, crossed, size, line))
    textpage.close()
    return glyphs, slanted


def _written(over: Over, glyphs: list[_Glyph]) -> list[_Glyph]:
    """Lines that are written over the page, in the direction of most of its text."""
    ((turned, _),) = Counter(glyph.turned for glyph in glyphs).most_common(1) or ((0, 0),)
    return [_Glyph(text, *_upright(box, turned), turned) for box, text in over.written]


def _with_addresses(glyphs: list[_Glyph]) -> list[_Glyph]:
    """With the address of a link behind the last of its words, and not at the end of each of their lines."""
    shown: list[_Glyph] = []
    target = ""
    pressed: list[tuple[str, _Glyph]] = []
    for glyph in glyphs:
        target = target if glyph.text.isspace() else glyph.target
        pressed.append((target, glyph))
    for target, group in itertools.groupby(pressed, lambda pair: pair[0]):
        words = [glyph for _, glyph in group]
        text = "".join(glyph.text for glyph in words)
        if address := linked(text.rstrip().replace("\x02", "-"), target)[len(text.rstrip()) :]:
            last = len(text.rstrip()) - 1
            words.insert(last + 1, replace(words[last], text=address, left=words[last].right))
        shown += words
    return shown


def _upright(box: Any, turned: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom), y downward, as somebody sees it who turns the page so that the text is upright."""
    low, high = sorted((box.bottom, box.top))
    if turned == 0:
        return box.left, -high, box.right, -low
    if turned == 1:
        return low, box.left, high, box.right
    if turned == 2:
        return -box.right, low, -box.left, high
    return -high, -box.right, -low, -box.left


def _turned(glyphs: list[_Glyph]) -> list[list[_Glyph]]:
    """By direction of writing, the commonest first: a rotated page, or a note in the margin."""
    counts = Counter(glyph.turned for glyph in glyphs)
    return [[glyph for glyph in glyphs if glyph.turned == turned] for turned, _ in counts.most_common()]


def _take_text(read: _Page, glyphs: list[_Glyph]) -> None:
    """Glyphs of one direction of writing."""
    single = [
        Segment(glyph.text, glyph.left, glyph.top, glyph.right, glyph.bottom, glyph.right - glyph.left)
        for glyph in glyphs
        if WIDE.match(glyph.text)
    ]
    if len(single) * 3 > sum(not glyph.text.isspace() for glyph in glyphs) * 2 and is_vertical(single[:_SAMPLE]):
        seen = [Segment(g.text, g.left, g.top, g.right, g.bottom, g.right - g.left) for g in glyphs if g.text.strip()]
        read.vertical = "\n".join(filter(None, (read.vertical, *vertical_lines(seen))))
        read.note = "vertical text, order uncertain"
    else:
        read.parts.append(list(_segments(glyphs)))


def _segments(glyphs: list[_Glyph]) -> Iterator[Segment]:
    """Glyphs that follow each other, cut where the line ends and at gaps as wide as those between cells."""
    run: list[_Glyph] = []
    for glyph in glyphs:
        if run:
            em = max(run[-1].bottom - run[-1].top, 0.1)
            gap = glyph.left - max(one.right for one in run[-2:])
            leaves = abs(glyph.top + glyph.bottom - run[-1].top - run[-1].bottom) > 1.4 * em
            if leaves or gap > 1.2 * em or gap < -em:
                yield from _segment(run)
                run = []
        if run or not glyph.text.isspace():
            run.append(glyph)
    yield from _segment(run)


def _as_it_stands(glyph: _Glyph, size: float, line: float) -> str:
    """Its text, as what is small and stands higher or lower is meant. `size`, `line`: of the letters around it."""
    if not 0 < glyph.size < 0.8 * size:
        return glyph.text
    higher = (line - glyph.line) / size
    return raised(glyph.text) if higher > 0.15 else lowered(glyph.text) if higher < -0.05 else glyph.text


def _segment(run: list[_Glyph]) -> Iterator[Segment]:
    while run and run[-1].text.isspace():
        run = run[:-1]
    if run:
        size = statistics.median(glyph.bottom - glyph.top for glyph in run)
        left, right = min(glyph.left for glyph in run), max(glyph.right for glyph in run)
        top, bottom = statistics.median(g.top for g in run), statistics.median(g.bottom for g in run)
        letters, line = statistics.median(g.size for g in run), statistics.median(g.line for g in run)
        pieces = itertools.groupby(run, lambda glyph: glyph.struck)
        texts = (
            (crossed, "".join(_as_it_stands(glyph, letters, line) for glyph in group)) for crossed, group in pieces
        )
        text = "".join(struck(words) if crossed else words for crossed, words in texts)
        yield Segment(text, left, top, right, bottom, size)


def _lost(text: str) -> int:
    """Characters that are no text, of fonts without a map to Unicode or with a wrong one: private, replaced and control
    characters, bullets apart; and all of a text of Latin letters with accents, or of marks, which no language has."""
    shown = "".join(text.split())
    if len(_ACCENTED.findall(shown)) * 3 > len(shown) > _FEW or len(_MARKS.findall(shown)) * 2 > len(shown) > _FEW:
        return len(text)
    return len(_UNKNOWN.findall(shown))


# --- pages without one ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pictures:
    cover: float
    """Share of the page that the largest picture covers, up to 1."""
    pixels: int
    """Of the largest."""


def _pictures(page: Any) -> _Pictures:
    import pypdfium2
    import pypdfium2.raw as raw

    area = max(page.get_width() * page.get_height(), 1.0)
    cover, pixels = 0.0, 0
    for picture in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=3):
        try:
            left, bottom, right, top = picture.get_bounds()
            width, height = picture.get_px_size()
        except pypdfium2.PdfiumError:
            continue
        cover, pixels = max(cover, (right - left) * (top - bottom) / area), max(pixels, width * height)
    return _Pictures(min(cover, 1.0), pixels)


def _read_by_ocr(page: Any, read: _Page, ocr: Ocr, pictures: _Pictures) -> None:
    most = ocr.limits.pixels
    if pictures.pixels > most:
        read.state, read.note = "unread", f"a picture of {pictures.pixels:,} pixels; {most:,} is the most"
        return
    inches = page.get_width() * page.get_height() / 72**2
    small = page.render(scale=min(1.0, math.sqrt(500_000 / max(inches * 72**2, 1)))).to_pil()
    if all(low == high for low, high in (band.getextrema() for band in small.convert("RGB").split())):
        read.state = "blank"
        return
    if not ocr.available:
        read.state, read.note = "unread", ocr.missing
        return
    dpi = min(_DPI, math.sqrt(min(most, 12_000_000) / max(inches, 0.01)))
    read.ocr = ocr.read(page.render(scale=dpi / 72).to_pil())
    read.state, read.note = "ocr", read.ocr.note
