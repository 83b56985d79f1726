"""Office files that attack: what they unpack to counts, not what they say."""

import struct
import zipfile

import pytest

from mengya.errors import UserError

from .office_maker import archive, docx, docx_parts, p

ZEROS = bytes(64 << 20)


def test_an_archive_bomb_is_refused(read):
    content = archive(docx_parts(p("正文")) | {"word/media/x.bin": ZEROS})
    assert len(content) < 1 << 20
    with pytest.raises(UserError, match="archive bomb"):
        read(content, "a.docx", unpacked_bytes=8 << 20)
    assert read(content, "a.docx").blocks[0].text == "正文"


def test_many_small_entries_count_together(read):
    parts = docx_parts(p("正文")) | {f"word/media/{i}.bin": bytes(1 << 20) for i in range(12)}
    with pytest.raises(UserError, match="archive bomb"):
        read(archive(parts), "renamed.doc", unpacked_bytes=8 << 20)


@pytest.mark.parametrize("said", [1000, 1 << 30])
def test_a_false_size_is_no_way_around(read, said):
    content = bytearray(archive(docx_parts(p("正文")) | {"word/media/x.bin": ZEROS}))
    for mark, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):  # of the last entry, in both places
        struct.pack_into("<I", content, content.rindex(mark) + offset, said)
    with pytest.raises(UserError, match="archive bomb"):
        read(bytes(content), "a.docx", unpacked_bytes=8 << 20)
    with pytest.raises(UserError, match=r"as it says|damaged"):
        read(bytes(content), "a.docx")


def test_a_nested_archive_is_not_unpacked(read):
    inner = archive({"bomb.bin": ZEROS})
    document = read(archive(docx_parts(p("正文")) | {"word/embeddings/x.zip": inner}), "a.docx", unpacked_bytes=8 << 20)
    assert document.blocks[0].text == "正文"
    with pytest.raises(UserError, match="no Word"):
        read(archive({"a.docx": docx(p("x"))}), "a.zip")


BOMB = '<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(read, encoding):
    parts = docx_parts(p("正文"))
    parts["word/document.xml"] = (BOMB + parts["word/document.xml"].replace("正文", "&b;")).encode(encoding)
    with pytest.raises(UserError, match="entities"):
        read(archive(parts), "a.docx")


def test_a_docx_that_is_cut_off_or_spoilt(read):
    content = docx(p("正文" * 1000))
    with pytest.raises(UserError, match="damaged or cut off"):
        read(content[: len(content) // 2], "a.docx")
    parts = docx_parts(p("正文"))
    parts["word/document.xml"] = "<w:document"
    with pytest.raises(UserError, match="damaged"):
        read(archive(parts), "a.docx")


def test_paths_in_an_archive_lead_nowhere(read, tmp_path):
    content = archive(docx_parts(p("正文")) | {"../../escaped.txt": "x", "/abs.txt": "y"})
    assert read(content, "../../a.docx").name == "../../a.docx"
    assert not (tmp_path.parent / "escaped.txt").exists() and zipfile.is_zipfile(tmp_path / "stored")
    assert [path.name for path in tmp_path.iterdir()] == ["stored"]
