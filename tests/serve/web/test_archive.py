"""The backup: conversations, pictures and documents, out and in."""

import io
import json
import time
import zipfile

import pytest

pytest.importorskip("rjieba", reason="searching needs pip install 'mengya[documents]'")
pytest.importorskip("opencc", reason="searching needs pip install 'mengya[documents]'")
pytest.importorskip("PIL", reason="pictures need pip install 'mengya[documents]'")

from PIL import Image

from mengya.errors import UserError
from mengya.rag.document import Block, Document, Page
from mengya.rag.reading.limits import Limits
from mengya.rag.retrieve import Retriever
from mengya.serve.web import archive, pictures
from mengya.serve.web.library import Library
from mengya.serve.web.settings import Settings
from mengya.serve.web.store import Message, Store

RULES = Document(
    "规定.pdf", "pdf",
    (Block("heading", "收费", 1, level=1), Block("text", "访客停车每小时收费八元。", 1),
     Block("table", "a | b", 2, rows=(("a", "b"),))),
    (Page(1, "text"), Page(2, "ocr", "ii", "uncertain")), ("a note",),
)  # fmt: skip
HASH = "0" * 64


class Place:
    """A data folder."""

    def __init__(self, folder):
        self.store, self.library = Store(folder / "c.sqlite3"), Library(folder / "documents", Limits())

    def export(self, owner="a"):
        file = io.BytesIO()
        archive.write(file, self.store, self.library, owner)
        return file.getvalue()

    def take(self, content, owner="a"):
        path = self.library.uploads / "x"
        path.write_bytes(content)
        try:
            told = archive.take(path, self.store, self.library, owner)
            return told["conversations"], told["files"]
        finally:
            path.unlink()

    def found(self, place, owner="a"):
        base = self.library.base(owner, place)
        return [(hit.stored.passage, hit.stored.file) for hit in Retriever().find(base, ["停车收费"])]

    def everything(self):
        stored = {owner: [self.store.get(owner, c.id) for c in self.store.all(owner)] for owner in "ab"}
        return stored, set(self.library._folder.rglob("*.sqlite3"))


@pytest.fixture
def places(tmp_path):
    made = [Place(tmp_path / name) for name in ("here", "there")]
    yield made
    for place in made:
        place.store.close()


def jpeg(size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "green").save(buffer, "JPEG")
    return buffer.getvalue()


def fill(place):
    """(conversation, picture) of one with a picture and a file; and a base."""
    made = place.store.create("a", "停车", Settings(bases=("base:园区",)).kept())
    shown = pictures.keep(place.store, "a", made, "叶.png", jpeg())
    source = {"id": 1, "file": "规定.pdf", "pages": [1], "headings": [], "quote": "八元", "text": "八元", "places": []}
    source |= {"place": f"conversation:{made}", "knowledge_base": made}
    question = Message(
        f"question-{made}"[:40], None, "user", "？", "done", 1.0, {"pictures": [{"id": shown, "name": "叶.png"}]}
    )
    said = Message(f"answer-{made}"[:40], question.id, "assistant", "八元[1]", "done", 2.0, {"sources": [source]})
    place.store.add("a", made, [question, said])
    place.library.make("a", "园区")
    for where in ("base:园区", f"conversation:{made}"):
        assert place.library.restore("a", where, RULES, HASH, 5.0)
    return made, shown


def test_everything_comes_back(places):
    here, there = places
    made, shown = fill(here)
    content = here.export()
    assert there.take(content) == (1, 2) and there.take(content) == (0, 0) == here.take(content)
    assert there.store.get("a", made) == here.store.get("a", made)
    assert pictures.data_of(there.store, "a", shown) == pictures.data_of(here.store, "a", shown) == jpeg()
    for where in ("base:园区", f"conversation:{made}"):
        assert there.found(where) == here.found(where) != []
        assert there.library.base("a", where).document("规定.pdf") == RULES
        assert there.library.files("a", where) == here.library.files("a", where)
    assert there.library.places("b") == [] and there.store.all("b") == []


def test_of_somebody_else_it_gets_ids_of_its_own(places):
    here, _ = places
    made, shown = fill(here)
    content = here.export()
    assert here.take(content, "b") == (1, 2) and here.take(content, "b") == (0, 0)
    (own,) = here.store.all("b")
    question, said = here.store.get("b", own.id).branch()
    picture = question.info["pictures"][0]["id"]
    assert own.id != made and picture != shown and pictures.data_of(here.store, "b", picture) == jpeg()
    assert pictures.data_of(here.store, "b", shown) is None
    place = said.info["sources"][0]["place"]
    assert place == f"conversation:{own.id}" and here.found(place, "b") == here.found(f"conversation:{made}")


def test_newer_files_win(places):
    here, there = places
    fill(here)
    there.take(here.export())
    newer = Document("规定.pdf", "pdf", (Block("text", "停车收费十元。"),))
    here.library.restore("a", "base:园区", newer, "1" * 64, time.time())
    old, new = there.export(), here.export()
    assert here.take(old) == (0, 0) and here.library.base("a", "base:园区").document("规定.pdf") == newer
    assert there.take(new) == (0, 1) and there.found("base:园区")[0][0].text == "停车收费十元。"


def changed(content, change=None, **entries):
    """The archive with other entries, or another index."""
    read = zipfile.ZipFile(io.BytesIO(content))
    parts = {name: read.read(name) for name in read.namelist()} | entries
    if change is not None:
        index = json.loads(parts["mengya.json"])
        change(index)
        parts["mengya.json"] = json.dumps(index)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written:
        for name, data in parts.items():
            if data is not None:
                written.writestr(name, data)
    return file.getvalue()


def bent(content):
    """With one bit of a document another."""
    at = content.index(b"documents/1.json") + 60
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("spoil", [
    lambda c: c[: len(c) // 2], lambda c: c[:-30], bent,
    lambda c: changed(c, **{"documents/1.json": None}), lambda c: changed(c, **{"documents/1.json": b"{}"}),
    lambda c: changed(c, **{"documents/1.json": b"[" * 100_000}), lambda c: changed(c, **{"pictures/0.jpg": b"GIF89a"}),
    lambda c: changed(c, **{"pictures/0.jpg": jpeg((9000, 10))}), lambda c: changed(c, **{"mengya.json": b"{"}),
    lambda c: changed(c, **{"mengya.json": None}), lambda c: changed(c, lambda i: i.update(format="other")),
    lambda c: changed(c, lambda i: i["files"][1].update(place="shared:园区")),
    lambda c: changed(c, lambda i: i["files"][1].update(place="conversation:../../etc/passwd")),
    lambda c: changed(c, lambda i: i["files"][1].update(hash="x")),
    lambda c: changed(c, lambda i: i["files"][1].update(added="x")),
    lambda c: changed(c, lambda i: i["conversations"][0].update(updated=float("nan"))),
    lambda c: changed(c, lambda i: i["conversations"][0]["settings"].update(max_new_tokens=10**30)),
    lambda c: changed(c, lambda i: i["pictures"][0].update(conversation="an-other-one")),
    lambda c: changed(c, lambda i: i["pictures"][0].update(id="../..")), lambda c: b"PK\x03\x04" + c[:100],
])  # fmt: skip
def test_a_broken_archive_changes_nothing(places, spoil):
    here, there = places
    fill(here)
    content = spoil(here.export())
    before = there.everything()
    with pytest.raises(UserError, match="backup"):
        there.take(content)
    assert there.everything() == before == ({"a": [], "b": []}, set())


def test_what_unpacks_to_too_much_is_refused(places, monkeypatch):
    here, there = places
    fill(here)
    monkeypatch.setattr(archive, "_TEXT", 10_000)
    with pytest.raises(UserError, match="bomb"):
        there.take(changed(here.export(), **{"documents/0.json": b" " * 50_000}))
    monkeypatch.setattr(archive, "_ENTRIES", 3)
    with pytest.raises(UserError, match="entries"):
        there.take(here.export())
    assert there.store.all("a") == []


def test_halves_of_characters_become_whole(places):
    here, there = places
    fill(here)
    assert there.take(changed(here.export(), lambda i: i["conversations"][0].update(title="好\ud83d"))) == (1, 2)
    assert [listed.title for listed in there.store.all("a")] == ["好\ufffd"]


@pytest.mark.parametrize("name", ["../../x.txt", "/etc/x.txt", "a\u202eb\x00.txt", "C:\\x.txt"])
def test_names_are_text_and_never_a_path(places, name, tmp_path):
    here, there = places
    fill(here)
    before = {path for path in tmp_path.rglob("*") if "documents" not in path.parts}

    def change(index):
        for file in index["files"]:
            file["name"] = name
        index["files"][0]["place"] = f"base:{name}"
        index["pictures"][0]["name"] = name

    assert there.take(changed(here.export(), change, **{"../../../evil.txt": b"x"})) == (1, 2)
    assert {path for path in tmp_path.rglob("*") if "documents" not in path.parts} == before
    (place,) = there.library.places("a")
    (file,) = there.library.files("a", place)["files"]
    assert "\x00" not in file["name"] and "\u202e" not in place
