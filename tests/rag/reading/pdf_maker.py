"""PDF files of a few lines, byte for byte, so that what is wrong with one is known. Every character is a black box."""

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Page:
    words: Sequence[tuple[float, float, float, str]] = ()
    """(x, y, size, text), from the lower left corner."""
    rotate: int = 0
    turned: int = 0
    """Degrees by which the text itself is turned."""
    crop: tuple[int, int, int, int] | None = None
    image: tuple[int, int, bytes] | None = None
    """(width, height, grey bytes), over the whole page."""
    drawing: str = ""
    annotations: Sequence[str] = ()


_WIDTH, _HEIGHT = 600, 800
_TURNS = {0: "1 0 0 1", 90: "0 1 -1 0", 180: "-1 0 0 -1", 270: "0 -1 1 0"}


def text(words: str) -> str:
    """As a string of a PDF file."""
    return f"<feff{words.encode('utf-16-be').hex()}>"


def pdf(pages: Sequence[Page], labels: str = "", encrypted: bool = False, catalog: str = "") -> bytes:
    """`labels`: the content of a tree of page labels, such as "0 << /S /r >>"; `catalog`: more of the root."""
    objects: dict[int, bytes] = {}
    numbers = itertools.count(3)

    def add(content: bytes) -> int:
        objects[number := next(numbers)] = content
        return number

    characters = sorted({character for page in pages for _, _, _, text in page.words for character in text})
    codes = {character: divmod(i, 200) for i, character in enumerate(characters)}
    box = add(_stream(b"1000 0 0 -120 1000 880 d1 100 0 800 800 re f"))
    fonts = [_font(add, box, characters[start : start + 200]) for start in range(0, len(characters), 200)]
    resources = " ".join(f"/F{i} {number} 0 R" for i, number in enumerate(fonts))
    kids, fields = [], ""
    for page in pages:
        over = [add(f"<< /Type /Annot {annotation} >>".encode()) for annotation in page.annotations]
        fields += "".join(f"{n} 0 R " for n, one in zip(over, page.annotations, strict=True) if "/Widget" in one)
        image, content = "", page.drawing
        if page.image:
            width, height, grey = page.image
            what = f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceGray"
            image = f"/I {add(_stream(grey, f'{what} /BitsPerComponent 8'))} 0 R"
            content += f"q {_WIDTH} 0 0 {_HEIGHT} 0 0 cm /I Do Q\n"
        for x, y, size, text in page.words:
            content += f"BT {_TURNS[page.turned]} {x} {y} Tm\n"
            content += "".join(f"/F{codes[c][0]} {size} Tf <{codes[c][1]:02x}> Tj\n" for c in text) + "ET\n"
        crop = f"/CropBox [{' '.join(map(str, page.crop))}]" if page.crop else ""
        kids.append(
            add(
                f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {_WIDTH} {_HEIGHT}] {crop} /Rotate {page.rotate} "
                f"/Annots [{' '.join(f'{number} 0 R' for number in over)}] "
                f"/Contents {add(_stream(content.encode()))} 0 R "
                f"/Resources << /Font << {resources} >> /XObject << {image} >> >> >>".encode()
            )
        )
    form = f"/AcroForm << /Fields [{fields}] >>" if fields else ""
    root = f"/Type /Catalog /Pages 2 0 R /PageLabels << /Nums [{labels or '0 << /S /D >>'}] >>"
    objects[1] = f"<< {root} {form} {catalog} >>".encode()
    objects[2] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] >>".encode()
    return _file(objects, encrypted)


def _font(add, box: int, characters: Sequence[str]) -> int:
    pairs = "".join(f"<{i:02x}> <{c.encode('utf-16-be').hex()}>\n" for i, c in enumerate(characters))
    parts = [pairs.splitlines(True)[start : start + 100] for start in range(0, len(characters), 100)]
    blocks = "".join(f"{len(part)} beginbfchar\n{''.join(part)}endbfchar\n" for part in parts)
    cmap = f"begincmap\n1 begincodespacerange\n<00> <ff>\nendcodespacerange\n{blocks}endcmap"
    last = len(characters) - 1
    return add(
        f"<< /Type /Font /Subtype /Type3 /FontBBox [0 -120 1000 880] /FontMatrix [0.001 0 0 0.001 0 0] "
        f"/FirstChar 0 /LastChar {last} /Widths [{'1000 ' * len(characters)}] /CharProcs << /g {box} 0 R >> "
        f"/Encoding << /Type /Encoding /Differences [0 {'/g ' * len(characters)}] >> /Resources << >> "
        f"/ToUnicode {add(_stream(cmap.encode()))} 0 R >>".encode()
    )


def _stream(data: bytes, entries: str = "") -> bytes:
    packed = zlib.compress(data)
    return f"<< {entries} /Filter /FlateDecode /Length {len(packed)} >>\nstream\n".encode() + packed + b"\nendstream"


def _file(objects: dict[int, bytes], encrypted: bool) -> bytes:
    out, places = bytearray(b"%PDF-1.7\n"), {}
    for number, content in sorted(objects.items()):
        places[number] = len(out)
        out += f"{number} 0 obj\n".encode() + content + b"\nendobj\n"
    start, size = len(out), max(objects) + 1
    out += f"xref\n0 {size}\n0000000000 65535 f \n".encode()
    out += "".join(f"{places[number]:010} 00000 n \n" for number in range(1, size)).encode()
    # A password that nobody knows: these are no hashes of any.
    secret = f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{'ab' * 32}> /U <{'cd' * 32}> /P -4 >> /ID [<00> <00>]"
    out += (
        f"trailer\n<< /Size {size} /Root 1 0 R {secret if encrypted else ''} >>\nstartxref\n{start}\n%%EOF\n".encode()
    )
    return bytes(out)
