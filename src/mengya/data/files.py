"""Finding input files, and reading their bytes: decompressed, in bounded pieces, with their encoding."""

import codecs
import glob
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from mengya.errors import UserError
from mengya.manifest import matches, visible_files

Paths = str | Path | list[str] | list[Path]
TAGGED = (".bio", ".bioes", ".bmes", ".conll")
"""Files with a token and its tag a line."""
FORMATS = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet", *TAGGED)
COMPRESSIONS = (".gz", ".zst")
SUPPORTED = f"{' '.join(FORMATS)}, plain or with {' or '.join(COMPRESSIONS)}"

CHUNK_BYTES = 1 << 20
"""What is read at once, and the beginning of a file that decides its encoding."""


def file_format(path: Path) -> tuple[str, str]:
    """(".jsonl", ".gz") of "a.JSONL.gz"; the second is "" for a plain file, the first may be any suffix."""
    name = path.name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    return os.path.splitext(name.removesuffix(compression))[1], compression


def scan_files(paths: Paths) -> tuple[list[Path], list[Path]]:
    """(files to read, files of a type that no reader knows) under `paths`, in the order given, each once.

    A path is a file, a folder (searched recursively, sorted by name, hidden entries left out) or a glob (`**` crosses
    folders); `~` is the home folder. UserError: a path does not exist, a glob matches nothing, a file named by itself
    is not of a supported type, or nothing is left to read.
    """
    given = paths if isinstance(paths, list) else [paths]
    found: dict[str, Path] = {}  # by real path, since links may lead to one file twice
    ignored: dict[str, Path] = {}
    for entry in given:
        path = Path(os.path.expanduser(entry))
        if path.is_file() and file_format(path)[0] not in FORMATS:
            raise UserError(f"{entry}: no reader for this type of file; supported are {SUPPORTED}")
        for file in _expand(path, str(entry)):
            kind = found if file_format(file)[0] in FORMATS else ignored
            kind.setdefault(os.path.realpath(file), file)
    if not found:
        names = ", ".join(str(entry) for entry in given) or "an empty list of paths"
        raise UserError(f"nothing to read in {names}; supported are {SUPPORTED}")
    return list(found.values()), list(ignored.values())


def _expand(path: Path, given: str) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from visible_files(path)
    elif glob.has_magic(str(path)):
        found = matches(str(path))
        if not found:
            raise UserError(f"{given}: the pattern matches nothing; check it, and quote it if a shell expands it")
        for match in found:
            # With `**` a glob lists the folders and their files: the files alone are enough then.
            if match.is_file():
                yield match
            elif "**" not in str(path):
                yield from visible_files(match)
    else:
        raise UserError(f"{given}: no such file or folder; check the path (relative ones start at {Path.cwd()})")


class ByteSource:
    """The decompressed bytes of one file in bounded pieces (usually 1 MB). Iterate once.

    Damage in the compressed stream ends the iteration after the last good byte; `damage` then says what is wrong, else
    it is None. UserError: the file cannot be opened or read.
    """

    def __init__(self, path: Path) -> None:
        self.damage: str | None = None
        self._chunks = self._read(path)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def _read(self, path: Path) -> Iterator[bytes]:
        compression = file_format(path)[1]
        try:
            with path.open("rb") as file:
                chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
                yield from _decompressed(chunks, *_STREAMS[compression]) if compression else chunks
        except (zlib.error, zstandard.ZstdError, EOFError) as error:
            what = re.sub(r"Error -?\d+ while decompressing data: ", "", str(error))
            self.damage = f"damaged {path.suffix.lower()} data: {what}"
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; check its permissions and the disk") from error


class TextSource(ByteSource):
    """The bytes of a text file, and their encoding. Iterate once; `head` may come before. NotText: it is not text."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.encoding = "ascii"
        """Of the pieces so far: "utf-8" or "gb18030" from the first on that is not ASCII."""
        self._stored: deque[bytes] = deque()

    def head(self) -> tuple[bytes, bool]:
        """The first `CHUNK_BYTES`, or fewer if the file ends before, and whether they are all that it has."""
        content = self._ahead()
        self.encoding = detect_encoding(content[:CHUNK_BYTES], len(content) <= CHUNK_BYTES)
        return content[:CHUNK_BYTES], len(content) <= CHUNK_BYTES

    def _ahead(self) -> bytes:
        """What comes next, more than `CHUNK_BYTES` unless the file ends before."""
        while sum(map(len, self._stored)) <= CHUNK_BYTES and (chunk := next(self._chunks, None)) is not None:
            self._stored.append(chunk)
        return b"".join(self._stored)

    def __iter__(self) -> Iterator[bytes]:
        while (chunk := self._stored.popleft() if self._stored else next(self._chunks, None)) is not None:
            if self.encoding == "ascii" and (first := re.search(rb"[^\x00-\x7f]", chunk)):
                # A file may begin in English: what comes from here on decides.
                self._stored.appendleft(chunk[first.start() :])
                content = self._ahead()
                self.encoding = detect_encoding(content[:CHUNK_BYTES], len(content) <= CHUNK_BYTES)
                chunk = chunk[: first.start()] + self._stored.popleft()
            yield chunk


_STREAMS: dict[str, tuple[Callable[[], Any], bytes]] = {
    ".gz": (lambda: zlib.decompressobj(wbits=31), b"\0"),
    ".zst": (lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(), b""),
}
"""What decompresses one stream, and the padding that is allowed before a stream."""


def _decompressed(chunks: Iterator[bytes], new_stream: Callable[[], Any], padding: bytes) -> Iterator[bytes]:
    """The content of compressed streams that follow each other. `zstandard`'s own reader takes a truncated file for a
    whole one, and `gzip` loses what it decompressed before the damage."""
    stream = None
    step = 64  # bytes of input at a time, so that output comes in bounded pieces however well it was compressed
    for chunk in chunks:
        start = 0
        while start < len(chunk):
            part = chunk[start : start + step]
            start += len(part)
            if stream is None:
                part = part.lstrip(padding)
                if not part:
                    continue
                stream = new_stream()
            piece = stream.decompress(part)
            if piece:
                yield piece
            if stream.eof:
                start -= len(stream.unused_data)
                stream = None
            step = max(64, step // 2) if len(piece) > CHUNK_BYTES // 2 else min(2048, step * 2)
    if stream is not None:
        raise EOFError("it ends too early")


class NotText(ValueError):
    """The bytes of a file are not text that we can read; the message says why."""


def detect_encoding(head: bytes, whole: bool) -> str:
    """The encoding, "ascii", "utf-8" or "gb18030", of text that begins with `head`; `whole`: nothing follows it.

    A few bad bytes do not change the verdict, so that one broken line stays one broken line. NotText: binary data,
    UTF-16, or neither encoding fits.
    """
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise NotText("UTF-16 or UTF-32 text; convert it to UTF-8")
    if head.count(0) * 1000 > len(head):
        raise NotText("binary data, or UTF-16 without its mark; convert text to UTF-8")
    if head.isascii():
        return "ascii"
    utf8 = _decode(head, "utf-8", whole)
    bad = utf8.count("\ufffd") - head.count(b"\xef\xbf\xbd")  # a spelled-out U+FFFD is not a fault
    if bad == 0 or bad < len(_WIDE.findall(utf8)):
        return "utf-8"
    if _looks_like_gb18030(_decode(head, "gb18030", whole)):
        return "gb18030"
    if bad > 1 + len(utf8) // 200:
        raise NotText("neither UTF-8 nor GB18030 text; convert it to UTF-8")
    return "utf-8"


_WIDE = re.compile("[\u0800-\ufffc\U00010000-\U0010ffff]")


def _decode(head: bytes, encoding: str, whole: bool) -> str:
    # Incremental, because the head may end in the middle of a character.
    return codecs.getincrementaldecoder(encoding)("replace").decode(head, final=whole)


def _looks_like_gb18030(text: str) -> bool:
    """Nearly every byte sequence *is* GB18030, so that the characters must also be likely ones: to a
    good part the 3,755 commonest (GB 2312 rows 16 to 55) and Chinese punctuation (rows 1 and 3). Their share is 0.97 in
    simplified and 0.7 in traditional text, but 0.1 in UTF-8 and 0.2 in Big5 text that is taken for GB18030."""
    foreign = [character for character in text if ord(character) > 0x7F]
    likely = 0
    for character in foreign:
        code = character.encode("gb18030")
        likely += len(code) == 2 and (0xB0 <= code[0] <= 0xD7 or code[0] in (0xA1, 0xA3)) and code[1] >= 0xA1
    wrong = text.count("\ufffd")
    return bool(foreign) and wrong * 50 <= len(foreign) + 49 and likely * 5 >= len(foreign) * 2


def raw_bytes(paths: Paths) -> int:
    """Bytes of all files under `paths`, decompressed."""
    total = 0
    for path in scan_files(paths)[0]:
        total += sum(map(len, ByteSource(path))) if file_format(path)[1] else path.stat().st_size
    return total
