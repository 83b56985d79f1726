"""Pictures: the text in them, and pictures that are too large."""

import io
import struct
import sys
import zlib

import pytest

from mengya.errors import UserError

Image = pytest.importorskip("PIL.Image")


def picture(width: int, height: int, *words: tuple[int, int, str], mode: str = "RGB"):
    from matplotlib import get_data_path
    from PIL import ImageDraw, ImageFont

    image = Image.new(mode, (width, height), (255, 255, 255, 0)[: len(mode)])
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 30)
    for x, y, text in words:
        ImageDraw.Draw(image).text((x, y), text, fill=(0, 0, 0, 255)[: len(mode)], font=font)
    return image


def saved(image, form: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def header(width: int, height: int) -> bytes:
    """A PNG file of that size, without its content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_picture_of_30_000_by_30_000_pixels_is_refused(read):
    with pytest.raises(UserError, match="30,000 x 30,000 pixels"):
        read(header(30_000, 30_000), "a.png")


def test_a_picture_that_is_cut_off(read):
    with pytest.raises(UserError, match="damaged"):
        read(saved(picture(200, 100, (5, 5, "hi")))[:80], "a.png")


def test_without_ocr_a_picture_is_unread(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    document = read(saved(picture(200, 100)), "a.png")
    assert document.pages[0].state == "unread" and "mengya[ocr]" in document.pages[0].note
    assert "no text was found" in document.notes


def test_words_on_a_transparent_ground_and_pages_of_a_tiff(read):
    pytest.importorskip("rapidocr")
    clear = picture(400, 400, (20, 30, "Bamboo 2024"), mode="RGBA")
    assert read(saved(clear), "a.png").blocks[0].text == "Bamboo 2024"
    two = [picture(400, 400, (20, 30, text)) for text in ("First page", "Second page")]
    document = read(saved(two[0], "tiff", save_all=True, append_images=two[1:]), "scan.tif")
    assert [(b.text, b.page) for b in document.blocks] == [("First page", 1), ("Second page", 2)]


def test_a_high_picture_is_read_in_bands(read):
    """Made smaller as a whole, its letters would be gone; at the seams no line is lost or read twice."""
    pytest.importorskip("rapidocr")
    words = [f"line {n}" for n in range(10, 40)]
    high = picture(760, 4200, *((40, 30 + 140 * i, word) for i, word in enumerate(words)))
    document = read(saved(high), "chat.png")
    assert "\n".join(b.text for b in document.blocks).split("\n") == words
