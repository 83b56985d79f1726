"""How much of a file is read, and how much a file may cost."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    file_bytes: int = 50 << 20
    """Of the file as it is given; larger ones are refused."""
    unpacked_bytes: int = 500 << 20
    """Of everything in a zip archive (docx, pptx, xlsx), counted while it is unpacked, whatever the archive says."""
    memory_bytes: int = 3 << 30
    """Address space of the process that reads."""
    seconds: float = 1800
    """For the whole file."""
    page_seconds: float = 120
    """Without a page more: then the reader is taken to hang."""
    address_seconds: float = 60
    """For the content of a web address to arrive, redirects included."""
    pages: int = 2000
    """What comes behind is left out, which a note tells."""
    pixels: int = 60_000_000
    """Of one picture, or of one page when it is drawn; larger ones are not decoded."""
    characters: int = 20_000_000
    """Of the text; what comes behind is left out, which a note tells."""
