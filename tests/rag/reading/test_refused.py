"""What is not read is named, with what to save it as, and what is read."""

import email.message

import pytest

from mengya.errors import UserError

from .office_maker import archive

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)


def mail() -> bytes:
    letter = email.message.EmailMessage()
    letter["From"], letter["To"], letter["Subject"] = "a@example.org", "b@example.org", "会议改期" * 30
    letter.set_content("改到周五。")
    letter.add_alternative("<p>改到周五。</p>", subtype="html")
    return letter.as_bytes()


MHT = b"From: <Saved by Blink>\r\nSnapshot-Content-Location: https://example.org/\r\n\r\n<html><p>x</p>"
REFUSED = {
    "信.eml": (mail(), "an e-mail (eml)"),
    "信.txt": (mail().replace(b"\n", b"\r\n"), "an e-mail (eml)"),
    "旧.eml": (b"From: a@example.org\nSubject: x\n\nhello\n", "an e-mail (eml)"),
    "页.mht": (MHT, "(mht)"),
    "页.html": (MHT, "(mht)"),
    "信.msg": (OLE + "__substg1.0_0037001F".encode("utf-16-le"), "Outlook (msg)"),
    "旧.doc": (OLE, "doc, xls, ppt"),
    "文.rtf": (b"{\\rtf1 x}", "an RTF file"),
    "文.doc": (b"\xef\xbb\xbf{\\rtf1 x}", "an RTF file"),
    "书.epub": (archive({"mimetype": "application/epub+zip", "a.xhtml": "<p>x</p>"}), "an e-book"),
    "文.odt": (archive({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": "<x/>"}), "LibreOffice"),
    "票.ofd": (archive({"OFD.xml": "<x/>"}), "an OFD file"),
    "文.pages": (archive({"Index/Document.iwa": b"x"}), "Pages"),
    "表.xlsb": (archive({"[Content_Types].xml": "<Types/>", "xl/workbook.bin": b"x"}), "xlsb"),
    "包.zip": (archive({"a.txt": "x"}), "unpack it"),
    "图.djvu": (b"AT&TFORM" + bytes(90), "DjVu"),
    "声.mp3": (b"ID3" + bytes(90), "recording"),
    "片.mp4": (bytes(4) + b"ftypisom" + bytes(90), "a video"),
    "数.bin": (bytes(range(256)) * 9, "binary data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_named(read, name):
    content, words = REFUSED[name]
    with pytest.raises(UserError) as told:
        read(content, name)
    assert words in str(told.value) and str(told.value).endswith("html, text and pictures are read")


@pytest.mark.parametrize(
    "text",
    [
        "From: 甲\n\n正文",
        "标题: x\n时间: y\n",
        "Subject: x\nDate: y\n\n正文",
        "key: value\nother: value\n",
        "MIME-Version 是什么？",
    ],
)
def test_a_text_that_begins_alike_is_read(read, text):
    assert read(text.encode(), "a.txt").blocks
