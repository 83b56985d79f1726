"""What the estimates of the stages share: the size of what they read, made by a stage above or there already."""

from pathlib import Path

from mengya.data.corpus import Corpus
from mengya.data.files import raw_bytes
from mengya.data.shards import Shards
from mengya.stage import Estimate

BYTES_PER_TOKEN = 3.6
"""Of a tokenizer that does not exist yet; measured on Chinese text with 6,400 entries."""
_CHAT_OVERHEAD = 1.25
"""Template tokens around short turns."""


def bytes_of_corpora(sources: list[Estimate | Path]) -> float:
    """Of the text to train on."""
    return sum(Corpus(s).size("train") if isinstance(s, Path) else s.text for s in sources)


def bytes_of_files(sources: list[Estimate | Path]) -> float:
    return sum(raw_bytes(str(s)) if isinstance(s, Path) else s.text for s in sources)


def rows_of_files(sources: list[Estimate | Path]) -> int:
    """Of files that a stage will write; others are not counted."""
    return sum(0 if isinstance(source, Path) else source.rows for source in sources)


def tokens_of_shards(sources: list[Estimate | Path]) -> float:
    """Separators included."""
    found = 0.0
    for source in sources:
        if isinstance(source, Path):
            meta = Shards(source / "train").meta
            found += meta["tokens"] + meta["documents"]
        else:
            found += source.tokens
    return found


def tokens_of_chats(sources: list[Estimate | Path]) -> float:
    """Of files of conversations."""
    return bytes_of_files(sources) / BYTES_PER_TOKEN * _CHAT_OVERHEAD
