"""Zip archives of Office, looked through before a library opens them: real sizes, and no XML with entities."""

import re
import struct
import xml.parsers.expat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mengya.errors import UserError
from mengya.rag.reading.limits import Limits
from mengya.rag.reading.refused import of_archive

_MOST_ENTRIES = 20_000
_CHUNK = 1 << 16
_HEADER = struct.Struct("<4s5H3I2H")
"""Of an entry: 30 bytes, of which the last two fields are the lengths of its name and of its extra field."""
_OFFICE = {
    "docx": rb"wordprocessingml\.(document|template)\.main|ms-word\.(document|template)\.macroEnabled(Template)?\.main",
    "pptx": rb"presentationml\.(presentation|slideshow|template)\.main|ms-powerpoint\.\w+\.macroEnabled\.main",
    "xlsx": rb"spreadsheetml\.(sheet|template)\.main|ms-excel\.(sheet|template)\.macroEnabled\.main",
}
"""Kind -> the type of its main part in [Content_Types].xml."""


def office_kind(path: Path, limits: Limits) -> str:
    """ "docx", "pptx" or "xlsx". Everything in the archive is unpacked once, and thrown away, to know how much it is.
    UserError: a bomb, a lie about sizes, a damaged or encrypted archive, or one that is no document."""
    types, kind = b"", ""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries = archive.infolist()
            if len(entries) > _MOST_ENTRIES:
                raise UserError(f"the archive has {len(entries):,} entries; at most {_MOST_ENTRIES:,} are read")
            left = limits.unpacked_bytes
            for entry in entries:
                content = _unpacked(file, entry, left)
                left -= _look_through(content, entry, types_wanted := entry.filename == "[Content_Types].xml")
                types = archive.read(entry) if types_wanted else types
                kind = archive.read(entry)[:100].decode("latin-1") if entry.filename == "mimetype" else kind
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError) as error:
        raise UserError(f"the archive is damaged or cut off ({error}); get it again, or open it and save it") from error
    for name, pattern in _OFFICE.items():
        if re.search(pattern, types):
            return name
    raise UserError(of_archive([entry.filename for entry in entries], kind))


def _unpacked(file: BinaryIO, entry: zipfile.ZipInfo, most: int) -> Iterator[bytes]:
    """The content of an entry, from its compressed bytes and nothing that the archive says of its size."""
    if entry.flag_bits & 1:
        raise UserError("it is encrypted; open it with its password and save it without")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError("the archive is packed in a way that Office does not use; open it and save it again")
    file.seek(entry.header_offset)
    header = _HEADER.unpack(file.read(_HEADER.size))
    if header[0] != b"PK\x03\x04":
        raise zipfile.BadZipFile("an entry has no header")
    file.seek(header[9] + header[10], 1)
    total = 0
    for piece in _inflated(file) if entry.compress_type else _stored(file, entry.file_size):
        total += len(piece)
        if total > most:
            raise UserError("unpacked it is larger than what is allowed; it looks like an archive bomb")
        yield piece
    if total != entry.file_size:
        raise UserError(f"{entry.filename[:60]!r} inside it has {total:,} bytes, not {entry.file_size:,} as it says")


def _stored(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (piece := file.read(min(size, _CHUNK))):
        size -= len(piece)
        yield piece


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    stream = zlib.decompressobj(-15)
    while not stream.eof:
        packed = stream.unconsumed_tail or file.read(_CHUNK)
        if not packed:
            raise EOFError("it ends too early")
        yield stream.decompress(packed, _CHUNK)


def _look_through(content: Iterator[bytes], entry: zipfile.ZipInfo, must_be_xml: bool) -> int:
    """The bytes of an entry. UserError: it is XML with a document type, where entities are declared that grow when they
    are read; Office writes none."""
    parser = xml.parsers.expat.ParserCreate()
    state = "prolog"

    def doctype(*_: object) -> None:
        raise UserError(f"{entry.filename[:60]!r} inside it declares XML entities, as attacks do; it is not read")

    def root(*_: object) -> None:
        nonlocal state
        state = "root"

    parser.StartDoctypeDeclHandler, parser.StartElementHandler = doctype, root
    total = 0
    for piece in content:
        total += len(piece)
        if state == "prolog":
            try:
                parser.Parse(piece, False)
            except xml.parsers.expat.ExpatError:
                state = "no XML"
    return total
