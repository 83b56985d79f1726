"""Whole files on disk."""

import json

import pytest

from mengya import durable


def test_write_json_keeps_the_old_content_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    durable.write_json(path, {"a": 1})

    def full(self, text, **options):
        self.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_text", full)
        with pytest.raises(OSError):
            durable.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def flushed(monkeypatch):
    """The names of what is flushed, in order."""
    names = []
    monkeypatch.setattr(durable, "flush", lambda path: names.append(path.name))
    return names


def test_the_content_is_flushed_before_the_name(tmp_path, flushed):
    durable.write_json(tmp_path / "a.json", {})
    assert flushed == ["a.json.partial", tmp_path.name]


def test_all_of_a_tree_is_flushed_but_for_what_is_left_out(tmp_path, flushed):
    for name in ("a/b/c", "a/d", "scratch/e", "f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    durable.flush_tree(tmp_path, without=("scratch",))
    assert sorted(flushed) == sorted(["a", "b", "c", "d", "f", tmp_path.name])
