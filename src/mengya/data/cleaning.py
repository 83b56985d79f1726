"""Light cleaning of text."""

import re

# C0 without \t and \n, DEL and C1, the byte order mark wherever files were glued together, and surrogates without a
# partner, which no encoder accepts. U+FFFD stays: it says that something was lost upstream.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BLANK_LINES = re.compile("\n{4,}")


def repair_surrogates(text: str) -> str:
    """`text` with each lone surrogate (JSON can spell them) replaced by U+FFFD, so that it can be encoded."""
    try:
        text.encode("utf-8")  # several times faster than a search, and nearly always the answer
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def strip_controls(text: str) -> str:
    """`text` with \\n line ends, and without control characters (\\t and \\n stay), byte order marks and lone
    surrogates."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", repair_surrogates(text))


def clean_document(text: str) -> str:
    """`text` as it is, but for: controls (`strip_controls`), spaces at line ends, more than two blank lines in a row,
    and blank lines at both ends. Idempotent; no Unicode normalisation, which would change what full-width punctuation
    means."""
    lines = strip_controls(text).split("\n")  # not a regular expression: those are quadratic in long runs of spaces
    return _BLANK_LINES.sub("\n\n\n", "\n".join([line.rstrip(" \t\u3000\xa0") for line in lines])).strip("\n")
