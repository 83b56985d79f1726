"""Pictures in Office files: what somebody has written of them, and which may hold text that is not read."""

import re
from typing import Any

from mengya.rag.reading.draft import one_line
from mengya.rag.reading.office import attribute

UNREAD = "pictures, whose text is not read; save it as PDF to have it read by OCR"
_FILE_NAME = re.compile(r"IMG_\d+|\S+\.\w{3,4}|.*[\\/].*", re.IGNORECASE)
"""What programs write where a picture should be described."""
_LARGE = 2_000_000 * 1_000_000
"""Square EMU of a picture that may hold text: 5.6 by 2.8 cm."""


def described(drawing: Any) -> str:
    """What is written for those who do not see it."""
    told = [one_line(attribute(one, "descr")) for one in drawing.iter("{*}docPr", "{*}cNvPr")]
    return "".join(f"〔图：{text}〕" for text in dict.fromkeys(told) if text and not _FILE_NAME.fullmatch(text))


def is_large(drawing: Any) -> bool:
    sizes = ((attribute(one, "cx"), attribute(one, "cy")) for one in drawing.iter("{*}extent", "{*}ext"))
    return any(width.isdigit() and height.isdigit() and int(width) * int(height) > _LARGE for width, height in sizes)
