"""Names of files as text: shown and compared, never a part of a path."""

import hashlib
import os
import re
import unicodedata
from pathlib import Path

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
    spaces, slashes and percent signs stay. A name that is cut ends with a part of its hash, or one file would take
    the place of another. Never empty."""
    shown = unicodedata.normalize("NFC", without_unseen(name)).strip()
    stem, dot, ending = shown.rpartition(".")
    if not stem or len(ending) > 16 or "/" in ending:
        stem, dot, ending = shown, "", ""
    if len(stem + dot + ending) > LONGEST:
        told = f"…{hashlib.sha256(shown.encode()).hexdigest()[:8]}"
        stem = stem[: LONGEST - len(told + dot + ending)] + told
    return stem + dot + ending or "unnamed"


def ending_of(name: str) -> str:
    """ "txt" of "a.TXT"; "" where there is none."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def name_of(path: Path) -> str:
    """Of a file on a disk; also where its name is in an older encoding, as from an archive that was made on Windows."""
    return name_as_text("/".join(_decoded(part) for part in path.as_posix().split("/")))


def _decoded(part: str) -> str:
    raw = os.fsencode(part)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("gb18030", "replace")
