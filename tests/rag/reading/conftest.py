"""Files that the tests make, read in this process: what a process of its own adds is tested in test_worker.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mengya.rag.document import Document
from mengya.rag.reading.draft import Source
from mengya.rag.reading.kinds import read_source
from mengya.rag.reading.limits import Limits

Read = Callable[..., Document]


@pytest.fixture
def read(tmp_path) -> Read:
    """read(bytes or path, name, **limits) -> Document."""

    def read(content: bytes | Path, name: str, **limits) -> Document:
        path = content if isinstance(content, Path) else tmp_path / "stored"
        if isinstance(content, bytes):
            path.write_bytes(content)
        return read_source(Source(path, name, Limits(**limits), lambda done, pages: None))

    return read
