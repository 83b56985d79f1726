"""The text in pictures, by RapidOCR, whose models come with it."""

import importlib.util
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mengya.rag.reading.draft import Draft
from mengya.rag.reading.layout import Segment, add_page, vertical_lines
from mengya.rag.reading.limits import Limits

_TILE_PIXELS = 4_000_000
"""What is looked at in one go, which bounds memory: larger pictures are cut into bands, or made smaller."""
_BAND, _OVERLAP = 1800, 240
"""Pixels. High pictures (of chats, of whole web pages) are cut into bands, which overlap so that each line is whole in
one of them."""


@dataclass(frozen=True)
class Found:
    segments: tuple[Segment, ...]
    vertical: bool

    @property
    def text(self) -> str:
        """Line for line, in the order in which it was found."""
        return "\n".join(segment.text for segment in self.segments)

    @property
    def note(self) -> str:
        if not self.segments:
            return "a picture in which OCR found no text"
        return "vertical text, order uncertain" if self.vertical else ""

    def add(self, draft: Draft, page: int) -> None:
        if self.vertical:
            draft.text("\n".join(vertical_lines(self.segments)), page)
        else:
            add_page(draft, self.segments, page, math.inf)  # sizes are too rough to tell headings


class Ocr:
    """Models are loaded with the first picture."""

    missing = "it is a picture, and OCR is not installed; pip install 'mengya[ocr]'"

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    @property
    def available(self) -> bool:
        return all(importlib.util.find_spec(name) for name in ("rapidocr", "onnxruntime"))

    def read(self, picture: Any) -> Found:
        """`picture`: a Pillow image."""
        segments: list[Segment] = []
        tall = 0
        for tile, offset, first, last in _tiles(_flat(picture)):
            for box, text in self._lines(tile):
                left, top, right, bottom = box
                if first <= (top + bottom) / 2 + offset < last and text.strip():
                    tall += bottom - top > 1.5 * (right - left) and len(text) > 1
                    size = min(bottom - top, right - left) if len(text) > 1 else bottom - top
                    segments.append(Segment(text.strip(), left, top + offset, right, bottom + offset, size))
        return Found(tuple(segments), tall * 2 > len(segments))

    def _lines(self, tile: Any) -> Iterator[tuple[tuple[float, float, float, float], str]]:
        import numpy

        result = self._engine(numpy.asarray(tile)[:, :, ::-1])  # the library wants blue first
        for corners, text in zip(result.boxes if result.boxes is not None else (), result.txts or (), strict=True):
            (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
            yield (left, top, right, bottom), text

    @cached_property
    def _engine(self) -> Any:
        from rapidocr import RapidOCR

        return RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.max_side_len": 4096,  # tiles are small enough
                "EngineConfig.onnxruntime.intra_op_num_threads": max(1, (os.cpu_count() or 1) // 2),
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )


def _flat(picture: Any) -> Any:
    """In RGB on white ground, upright as the camera says."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    return picture.convert("RGB")


def _tiles(picture: Any) -> Iterator[tuple[Any, float, float, float]]:
    """(tile, its distance from the top, first and last place of lines that are taken from it)."""
    from PIL import ImageOps

    width, height = picture.size
    if height > 2 * _BAND and height > 2 * width:
        most = _TILE_PIXELS // _BAND
        if width > most:
            picture = picture.resize((most, height * most // width))
            width, height = picture.size
        for top in range(0, max(height - _OVERLAP, 1), _BAND - _OVERLAP):
            bottom = min(top + _BAND, height)
            first = top + _OVERLAP / 2 if top else 0
            last = bottom - _OVERLAP / 2 if bottom < height else math.inf
            yield picture.crop((0, top, width, bottom)), top, first, last
        return
    scale = min(1.0, math.sqrt(_TILE_PIXELS / (width * height)))
    if scale < 1:
        picture = picture.resize((max(1, int(width * scale)), max(1, int(height * scale))))
    side = max(picture.size) // 4
    if min(picture.size) < side:  # the library makes narrow pictures many times larger
        size = (max(picture.width, side), max(picture.height, side))
        picture = ImageOps.pad(picture, size, color="white", centering=(0, 0))
    yield picture, 0.0, 0.0, math.inf
