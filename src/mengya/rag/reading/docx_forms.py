"""What Word shows where a form is filled in: boxes that are ticked, choices, pictures of signs."""

from typing import Any

from mengya.rag.reading.office import attribute, child, is_on, tag

_SIGNS = {
    "Wingdings": {0x6F: "☐", 0x71: "☐", 0x72: "☐", 0xA8: "☐", 0xFB: "✗", 0xFC: "✓", 0xFD: "☒", 0xFE: "☑"},
    "Wingdings 2": {0x2A: "☐", 0xA3: "☐", 0x4F: "✗", 0x50: "✓", 0x51: "☒", 0x52: "☑", 0x53: "☒", 0x54: "☒"},
}
"""Font -> code -> what it draws there, of what forms are made of."""


def sign(font: str, code: int) -> str:
    """A character of a font of signs; empty for one that says nothing."""
    if font in _SIGNS:
        return _SIGNS[font].get(code & 0xFF, "")
    return chr(code) if 0x20 <= code < 0xE000 else ""


def in_font(text: str, properties: Any) -> str:
    """The text of a run, whose letters may be signs in its font: R is a ticked box in Wingdings 2."""
    fonts = child(properties, "rFonts") if properties is not None else None
    font = attribute(fonts, "ascii") if fonts is not None else ""
    if font not in _SIGNS:
        return text
    return "".join(sign(font, ord(character)) or character for character in text)


def field(begin: Any) -> str:
    """What the beginning of a field says of its value, where nothing else does: a box or a choice of a form."""
    data = child(begin, "ffData")
    for one in data if data is not None else ():
        if tag(one) == "checkBox":
            state = "checked" if child(one, "checked") is not None else "default"
            return "☑" if is_on(one, state) else "☐"
        if tag(one) == "ddList":
            entries = [attribute(entry, "val") for entry in one if tag(entry) == "listEntry"]
            chosen = next((attribute(entry, "val") for entry in one if tag(entry) == "result"), "0")
            return entries[int(chosen)] if chosen.isdigit() and int(chosen) < len(entries) else ""
    return ""
