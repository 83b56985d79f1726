"""Names of files as text: shown and compared, never a part of a path."""

import re
import unicodedata

LONGEST = 200
"""Characters of a name, its ending included."""

# Controls, and marks that turn the direction of writing: "txt.exe" can be made to look like "exe.txt".
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def without_unseen(text: str) -> str:
    return _UNSEEN.sub("", text)


def name_as_text(name: str) -> str:
    """`name` in Unicode's NFC without characters that are not seen, cut to `LONGEST` with its ending kept; brackets,
    spaces, slashes and percent signs stay. Never empty."""
    shown = unicodedata.normalize("NFC", without_unseen(name)).strip()
    stem, dot, ending = shown.rpartition(".")
    if not stem or len(ending) > 16 or "/" in ending:
        stem, dot, ending = shown, "", ""
    return stem[: LONGEST - len(dot + ending)] + dot + ending or "unnamed"


def ending_of(name: str) -> str:
    """ "txt" of "a.TXT"; "" where there is none."""
    return name.rpartition(".")[2].lower() if "." in name else ""
