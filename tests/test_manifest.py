"""Manifests: fingerprints of inputs, and the chain from a model back to the raw files."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from mengya import durable, manifest
from mengya.errors import UserError

NOW = time.time_ns


def write(directory, **values):
    directory.mkdir(parents=True, exist_ok=True)
    record = {"stage": directory.name, "fingerprint": directory.name, "inputs": []} | values
    durable.write_json(directory / manifest.FILE, record)


def test_read(tmp_path):
    assert manifest.read(tmp_path) is None
    assert manifest.read(tmp_path / "nowhere") is None
    write(tmp_path, seed=3)
    assert manifest.read(tmp_path)["seed"] == 3


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"stage": "a"}'])
def test_another_programs_stage_json_is_no_manifest(tmp_path, content):
    (tmp_path / manifest.FILE).write_text(content)
    assert manifest.read(tmp_path) is None


def test_a_truncated_manifest_is_an_error_with_a_remedy(tmp_path):
    write(tmp_path)
    path = tmp_path / manifest.FILE
    path.write_text(path.read_text()[:-10])
    with pytest.raises(UserError, match=r"stage.json is damaged .*; delete .* and run again"):
        manifest.read(tmp_path)


def test_the_fingerprint_of_a_file_is_that_of_its_content_wherever_it_lies(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = tmp_path / "a" / "text.txt", tmp_path / "b" / "text.txt"
    first.write_text("one")
    second.write_text("one")
    before = manifest.fingerprint_of(first)
    assert before == manifest.fingerprint_of(second)
    first.write_text("two")
    assert manifest.fingerprint_of(first) != before


def test_the_fingerprint_of_a_folder_sees_what_the_readers_see(tmp_path):
    folder, far = tmp_path / "in", tmp_path / "far"
    (folder / "sub").mkdir(parents=True)
    far.mkdir()
    (folder / "sub" / "a.txt").write_text("a")
    (far / "b.txt").write_text("b")
    prints = [manifest.fingerprint_of(folder)]
    (folder / ".DS_Store").write_text("hidden")
    assert manifest.fingerprint_of(folder) == prints[0]
    (folder / "link").symlink_to(far, target_is_directory=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    prints.append(manifest.fingerprint_of(folder))
    (far / "b.txt").write_text("changed behind the link")
    prints.append(manifest.fingerprint_of(folder))
    (folder / "sub" / "a.txt").rename(folder / "sub" / "c.txt")
    prints.append(manifest.fingerprint_of(folder))
    assert len(set(prints)) == 4
    shutil.move(folder, tmp_path / "moved")
    assert manifest.fingerprint_of(tmp_path / "moved") == prints[-1]


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A folder of two files that were written long ago, and a list of the files that are read for their digests."""
    folder, read = tmp_path / "raw", []
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(name)
    later(monkeypatch, 10)
    sha256 = manifest.sha256_of
    monkeypatch.setattr(manifest, "sha256_of", lambda path: read.append(path.name) or sha256(path))
    return folder, read


def later(monkeypatch, seconds):
    monkeypatch.setattr(manifest.time, "time_ns", lambda: NOW() + seconds * 10**9)


def fingerprint(folder):
    (found,) = manifest.fingerprints_of([folder], folder.parent)
    return found


def test_digests_are_kept_until_a_file_is_edited(raw, monkeypatch):
    folder, read = raw
    prints = [fingerprint(folder), fingerprint(folder)]
    assert prints[0] == prints[1] == manifest.fingerprint_of(folder, sha256=manifest.sha256_of)
    assert read == ["a.txt", "b.txt"] * 2  # the second time by `fingerprint_of`
    (folder / "a.txt").write_text("other")
    later(monkeypatch, 20)
    read.clear()
    assert fingerprint(folder) != prints[0] and fingerprint(folder) != prints[0]
    assert read == ["a.txt"]


def test_an_edit_with_the_same_size_and_time_is_noticed(raw):
    folder, _ = raw
    before, times = fingerprint(folder), (folder / "a.txt").stat()
    (folder / "a.txt").write_text("A.TXT")
    os.utime(folder / "a.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(folder) != before
    (folder / "new").write_text("a.txt")
    os.utime(folder / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
    (folder / "new").replace(folder / "a.txt")
    assert fingerprint(folder) == before


def test_a_file_that_was_just_written_is_not_trusted(raw, monkeypatch):
    """Its times may be so coarse that another edit does not change them."""
    folder, read = raw
    later(monkeypatch, 1)
    fingerprint(folder), fingerprint(folder)
    assert read == ["a.txt", "b.txt"] * 2 and not (folder.parent / manifest.DIGESTS).exists()


def test_a_file_that_changes_while_it_is_read_is_not_trusted(raw, monkeypatch):
    folder, _ = raw
    sha256 = manifest.sha256_of
    monkeypatch.setattr(manifest, "sha256_of", lambda path: (sha256(path), path.write_text("longer now"))[0])
    first = fingerprint(folder)
    monkeypatch.setattr(manifest, "sha256_of", sha256)
    assert fingerprint(folder) != first


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"PATH": 3}', '{"PATH": [[1], 2]}', '{"PATH": [[1, 2]]}', b"\xff"]
)
def test_a_damaged_cache_counts_as_none(raw, content):
    folder, _ = raw
    cache = folder.parent / manifest.DIGESTS
    before = fingerprint(folder)
    if isinstance(content, bytes):
        cache.write_bytes(content)
    else:
        cache.write_text(content.replace("PATH", str(folder / "a.txt")))
    assert fingerprint(folder) == before
    assert json.loads(cache.read_text()).keys() == {str(folder / "a.txt"), str(folder / "b.txt")}


def test_digests_are_kept_beside_the_artifacts_and_need_no_room(grown, mengya, monkeypatch):
    time.sleep(max(0.0, 2.1 - (time.time() - (grown / "text.jsonl").stat().st_ctime)))
    assert mengya("run", "whole.toml", "--out", "run").code == 0
    kept = json.loads((grown / "run" / manifest.DIGESTS).read_text())
    assert {Path(path).name for path in kept} > {
        f"{n}.jsonl" for n in ("text", "conversations", "preferences", "questions")
    }

    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write_json", full)
    later(monkeypatch, 10)
    assert manifest.fingerprints_of([grown / "text.jsonl"], grown / "elsewhere")


def test_an_artifact_has_its_own_fingerprint_and_so_has_what_lies_in_it(tmp_path, monkeypatch):
    write(tmp_path / "corpus", fingerprint="f00d")
    (tmp_path / "corpus" / "x" / "y").mkdir(parents=True)
    assert manifest.fingerprint_of(tmp_path / "corpus") == "f00d"
    assert manifest.fingerprint_of(tmp_path / "corpus" / "x" / "y") == "f00d/x/y"
    monkeypatch.chdir(tmp_path / "corpus")
    (tmp_path / "beside.txt").write_text("not in the artifact")
    assert "/" not in manifest.fingerprint_of(manifest.Path("../beside.txt"))


def test_the_chain_names_sources_first_and_each_once(tmp_path):
    def entry(path, artifact=True):
        return {"field": "x", "path": path, "artifact": artifact, "fingerprint": "f"}

    write(tmp_path / "corpus", inputs=[entry("/raw/text.txt", artifact=False)])
    write(tmp_path / "tokenizer", inputs=[entry("../corpus")])
    write(tmp_path / "tokenize", inputs=[entry("../corpus"), entry("../tokenizer")])
    write(tmp_path / "pretrain", inputs=[entry("../tokenize")])
    write(tmp_path / "sft", inputs=[entry("../pretrain"), entry("../corpus/conversations.jsonl")])
    (tmp_path / "corpus" / "conversations.jsonl").touch()
    links = manifest.chain([tmp_path / "sft", tmp_path / "pretrain"])
    assert [link["stage"] for link in links] == ["corpus", "tokenizer", "tokenize", "pretrain", "sft"]
    assert links[0]["directory"] == str(tmp_path / "corpus")
    assert links[0]["inputs"][0]["path"] == "/raw/text.txt"


def test_the_chain_ends_where_an_artifact_was_deleted(tmp_path):
    write(
        tmp_path / "sft",
        inputs=[{"field": "model", "path": "../pretrain", "artifact": True, "fingerprint": "pretrain"}],
    )
    assert [link["stage"] for link in manifest.chain([tmp_path / "sft"])] == ["sft"]


def test_a_real_chain_leads_from_the_report_to_the_raw_files_even_after_a_move(grown):
    shutil.move(grown / "run", grown / "elsewhere")
    links = manifest.chain([grown / "elsewhere" / "evaluate"])
    names = [link["stage"] for link in links]
    assert sorted(names) == sorted(["corpus", "tokenizer", "tokenize", "pretrain", "sft", "dpo", "evaluate"])
    assert names[0] == "corpus" and names[-1] == "evaluate"
    raw = {e["path"] for link in links for e in link["inputs"] if not e["artifact"]}
    assert raw == {"text.jsonl", "conversations.jsonl", "preferences.jsonl", "questions.jsonl"}
    for link in links:
        assert link["versions"].keys() == {"mengya", "torch", "tokenizers", "safetensors", "numpy"}
        assert link["files"] and link["machine"] and link["started"] and link["seconds"] >= 0
        assert link["peak_memory_bytes"] > 0 and link["peak_device_memory_bytes"] is None
        assert set(link["files"]) == {
            p.relative_to(link["directory"]).as_posix()
            for p in manifest.Path(link["directory"]).rglob("*")
            if p.is_file() and p.name != manifest.FILE
        }


def test_the_chain_goes_on_into_another_output_directory(grown, mengya):
    overrides = ["--until", "sft", "sft.model=run/pretrain"]
    assert mengya("run", "whole.toml", *overrides, "--out", "other").code == 0
    links = manifest.chain([grown / "other" / "sft"])
    assert [link["stage"] for link in links] == ["corpus", "tokenizer", "tokenize", "pretrain", "sft"]
    assert links[3]["directory"] == str(grown / "run" / "pretrain")
