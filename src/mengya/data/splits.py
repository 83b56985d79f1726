"""What is held out: a stable split by a hash of the content, which also finds exact duplicates."""

from hashlib import blake2b


def content_hash(text: str) -> bytes:
    """16 bytes of BLAKE2b over the text with every run of white space squeezed to one space."""
    return blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def is_heldout(content: bytes, fraction: float) -> bool:
    """Whether the document with this `content_hash` is held out. Depends on the text and `fraction` alone, so that
    adding or reordering files moves no document across, and a larger fraction holds out a superset."""
    assert 0.0 <= fraction <= 1.0, fraction
    return int.from_bytes(content[:8], "big") < fraction * 2.0**64
