"""Where a link leads, as text behind its words: a passage that says "see here" would tell nobody where."""

import re
from urllib.parse import unquote, urljoin, urlsplit

_LONGEST = 200
"""Characters of an address that is kept; a longer one is without its query first."""
_MANY, _APART = 4, 50
"""Addresses of a line that are kept in any case; and characters of words for each, from which on more are."""
_WRITTEN = re.compile(r"〔(?:https?://|[^\s〔〕]+@)[^\s〔〕]+〕")
_BEYOND_ASCII = re.compile(r"(?:%[89a-f][0-9a-f])+", re.IGNORECASE)


def linked(words: str, target: str | None) -> str:
    """`words`, and behind them the address in brackets: of the web or of a mailbox, not too long, and only where the
    words do not say it themselves."""
    address = _address("".join((target or "").split()))
    if not address or not words.strip() or _core(address) in _core(words):
        return words
    told = words.rstrip()
    return f"{told}〔{address}〕{words[len(told) :]}"


def without_addresses(text: str) -> str:
    """Of a heading, which stands over each of its passages, or of a crowded line."""
    return _WRITTEN.sub("", text)


def crowded(line: str) -> int:
    """How many addresses a line has, if its words drown in them, as in an encyclopedia; else 0."""
    count = len(_WRITTEN.findall(line))
    return count if count > _MANY and len(without_addresses(line)) < _APART * count else 0


def absolute(target: str, base: str) -> str:
    """A target as it is seen from elsewhere; one in the same page stays what it is."""
    try:
        return target if not target or target.startswith("#") else urljoin(base, target)
    except ValueError:
        return target


def _address(target: str) -> str:
    try:
        parts = urlsplit(target)
        web = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        return ""
    if parts.scheme == "mailto":
        return parts.path if "@" in parts.path and len(parts.path) <= _LONGEST else ""
    if not web or re.search(r"[<>〔〕]", target):
        return ""
    shown = _BEYOND_ASCII.sub(_decoded, target)
    shown = shown if len(shown) <= _LONGEST else re.split("[?#]", shown, maxsplit=1)[0]
    return shown if len(shown) <= _LONGEST else ""


def _decoded(coded: re.Match[str]) -> str:
    """Letters of other scripts, as a reader knows them."""
    text = unquote(coded[0], errors="replace")
    return text if text.isalnum() else coded[0]


def _core(text: str) -> str:
    """What two ways of writing an address have in common."""
    text = _BEYOND_ASCII.sub(_decoded, "".join(text.split()))
    return re.sub(r"^(https?://|mailto:)?(www\.)?", "", text.casefold()).rstrip("/")
