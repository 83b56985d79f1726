"""Kinds of files that are known and not read: what they are, and what to save them as."""

import re
from collections.abc import Collection

READ = "PDF, docx, pptx, xlsx, csv, Markdown, html, text and pictures are read"
_UNPACK = "unpack it and add the files inside"
_BEGIN = (
    (b"{\\rtf", "an RTF file; save it as docx"),
    (b"\x1f\x8b", f"a compressed file; {_UNPACK}"),
    (b"BZh91AY", f"a compressed file; {_UNPACK}"),
    (b"\xfd7zXZ", f"a compressed file; {_UNPACK}"),
    (b"7z\xbc\xaf", f"a 7z archive; {_UNPACK}"),
    (b"Rar!\x1a", f"a rar archive; {_UNPACK}"),
    (b"\x7fELF", "a program, not a document"),
    (b"MZ\x90", "a program, not a document"),
    (b"SQLite format 3\0", "a database, not a document; export what you need as csv"),
    (b"AT&TFORM", "a DjVu file; save it as PDF"),
    (b"ITSF", "a help file (chm); save its pages as html"),
    (b"%!PS", "a PostScript file; save it as PDF"),
    (b"ID3", "a recording; write down what is said, and add the text"),
    (b"OggS", "a recording; write down what is said, and add the text"),
)
_MAIL_HEAD = re.compile(rb"(?:[A-Za-z][\w-]*:[^\n]*\n(?:[ \t][^\n]*\n)*){2,}")
_MAIL = re.compile(
    rb"^(?:MIME-Version:|Message-ID:|Received:|Snapshot-Content-Location:)", re.IGNORECASE | re.MULTILINE
)
_XML = (
    (rb"<\?mso-application\s+progid=.Excel|<(?:\w+:)?Workbook\b", "an XML file of Excel 2003; save it as xlsx"),
    (rb"<\?mso-application\s+progid=.Word|<w:wordDocument\b|<pkg:package\b", "an XML file of Word; save it as docx"),
    (rb"<office:document\b", "an XML file of LibreOffice; save it as docx, xlsx or pptx"),
)
"""In the beginning of an XML file -> what it is."""
_ARCHIVES = (
    (r"mimetype:application/epub\+zip", "an e-book (epub); save it as html or PDF"),
    (r"mimetype:application/vnd\.oasis", "a LibreOffice file (odt, ods, odp); save it as docx, xlsx or pptx"),
    (r"OFD\.xml", "an OFD file; save it as PDF"),
    (r"Index/.*\.iwa|Index\.zip", "a Pages, Numbers or Keynote file; export it as docx, xlsx, pptx or PDF"),
    (r"xl/workbook\.bin", "an Excel file of the binary format (xlsb); save it as xlsx"),
)  # fmt: skip
"""A name in the archive, or what its part "mimetype" says -> what it is."""


def known(head: bytes, ending: str) -> str | None:
    """What a file is that begins so, by what it says or by its ending; None if it may be read."""
    head = head.removeprefix(b"\xef\xbb\xbf")
    for mark, what in _BEGIN:
        if head.startswith(mark):
            return what
    for pattern, what in _XML if head.lstrip().startswith(b"<?xml") else ():
        if re.search(pattern, head):
            return what
    if head[4:8] == b"ftyp":
        return "a video, or a picture as HEIC or AVIF; save a picture as PNG or JPEG"
    lines = _MAIL_HEAD.match(head.replace(b"\r\n", b"\n"))
    if lines and (_MAIL.search(lines[0]) or ending in ("eml", "mht", "mhtml")):
        page = ending in ("mht", "mhtml") or b"Snapshot-Content-Location:" in lines[0]
        return f"{'a page saved with its pictures (mht)' if page else 'an e-mail (eml)'}; save it as html or PDF"
    return None


def of_old_office(data: bytes) -> str:
    """Of a file of the format that holds doc, xls and ppt, and others."""
    streams = {name: name.encode("utf-16-le") for name in ("EncryptedPackage", "__substg1.0_")}
    if streams["EncryptedPackage"] in data:  # a docx, as it is encrypted
        return "it is encrypted; open it with its password and save it without"
    if streams["__substg1.0_"] in data:
        return f"this is an e-mail of Outlook (msg); save it as html or PDF: {READ}"
    return f"this is a file of an old Office format (doc, xls, ppt); save it as docx, xlsx or pptx: {READ}"


def of_archive(names: Collection[str], kind: str) -> str:
    """Of a zip archive. `kind`: what its part "mimetype" says."""
    told = "\n".join([f"mimetype:{kind}", *names])
    found = next((what for mark, what in _ARCHIVES if re.search(f"^{mark}", told, re.MULTILINE)), None)
    what = found or "a zip archive, but no Word, PowerPoint or Excel document; unpack it and add the files"
    return f"this is {what}: {READ}"
