"""Manifests: fingerprints of inputs, and the chain from a model back to the raw files."""

import json
import shutil

import pytest

from mengya import manifest
from mengya.errors import UserError


def write(directory, **values):
    directory.mkdir(parents=True, exist_ok=True)
    record = {"stage": directory.name, "fingerprint": directory.name, "inputs": []} | values
    manifest.write_json(directory / manifest.FILE, record)


def test_write_json_keeps_the_old_content_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    manifest.write_json(path, {"a": 1})

    def full(self, text, **options):
        self.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_text", full)
        with pytest.raises(OSError):
            manifest.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


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
        assert link["peak_memory_bytes"] > 0
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
