"""Running stages: atomic, cached by what they were made from, resumable, one run at a time."""

import dataclasses
import fcntl
import json
import shutil
from pathlib import Path
from typing import Annotated

import pytest

from mengya import durable, manifest
from mengya.errors import UserError
from mengya.manifest import UNFINISHED
from mengya.recipe import Recipe, StageSpec
from mengya.runner import run_recipe, run_stage
from mengya.schema import HOW, Input, config
from mengya.stage import Estimate, Stage


@config
class Inner:
    rate: float = 0.5
    betas: tuple[float, float] = (0.9, 0.95)


@config
class Config:
    path: Annotated[str | list[str], Input("file")] | None = None
    other: Annotated[str, Input("file")] | None = None
    size: int = 1
    inner: Inner = Inner()
    seed: int = 0


class Counting:
    """A stage that counts its runs and can be made to fail."""

    def __init__(self, resumable=False, work=None, scratch=()):
        self.runs, self.inputs = 0, None
        self._work = work
        self.stage = Stage(
            config=Config,
            run=self.run,
            makes=("thing",),
            estimate=lambda *_: Estimate(seconds=0),
            progress=(lambda out: (out / "runs.txt").exists()) if resumable else None,
            scratch=scratch,
        )

    def run(self, config, inputs, out: Path) -> None:
        self.runs += 1
        self.inputs = inputs
        (out / "runs.txt").open("a").write("run\n")
        if self._work:
            self._work(self, out)


class Crash(Exception):
    pass


def crash_at_first(stage: Counting, out: Path) -> None:
    if stage.runs == 1:
        raise Crash


def fails_for(name: str):
    """`durable.write_json` on a disk that is full when `name` is written."""
    whole = durable.write_json

    def write_json(path, value):
        if path.name == name:
            raise OSError(28, "No space left on device")
        whole(path, value)

    return write_json


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


def spec(counting: Counting, name="work", **settings) -> StageSpec:
    return StageSpec(name, name, counting.stage, Config(**settings))


def test_a_finished_stage_is_a_directory_with_a_manifest_and_is_not_run_again(root, capsys):
    stage = Counting()
    run_stage(spec(stage), root)
    run_stage(spec(stage), root)
    assert stage.runs == 1
    assert sorted(p.name for p in (root / "work").iterdir()) == ["runs.txt", "stage.json"]
    assert [p.name for p in root.iterdir()] == ["work"]
    record = manifest.read(root / "work")
    assert record["files"] == {"runs.txt": 4} and record["seed"] == 0 and record["stage"] == "work"
    assert capsys.readouterr().out.splitlines() == ["▶ work", "✓ work: 0.0s", "✓ work: already there"]


def test_a_crash_leaves_only_a_partial_directory_and_the_next_run_starts_afresh(root):
    stage = Counting(work=crash_at_first)
    with pytest.raises(Crash):
        run_stage(spec(stage), root)
    assert [p.name for p in root.iterdir()] == ["work.partial"]
    assert manifest.read(root / "work.partial") is None
    run_stage(spec(stage), root)
    assert (root / "work" / "runs.txt").read_text() == "run\n"
    assert [p.name for p in root.iterdir()] == ["work"]


def test_a_resumable_stage_goes_on_in_its_partial_directory_and_adds_up_its_time(root, monkeypatch):
    stage = Counting(resumable=True, work=crash_at_first)
    with pytest.raises(Crash):
        run_stage(spec(stage), root)
    note = root / "work.partial" / UNFINISHED
    note.write_text(json.dumps(json.loads(note.read_text()) | {"seconds": 100.0}))
    run_stage(spec(stage), root)
    assert (root / "work" / "runs.txt").read_text() == "run\nrun\n"
    assert manifest.read(root / "work")["seconds"] >= 100
    assert not (root / "work" / UNFINISHED).exists()


def test_an_unfinished_resumable_stage_with_other_settings_is_refused(root):
    stage = Counting(resumable=True, work=crash_at_first)
    with pytest.raises(Crash):
        run_stage(spec(stage), root)
    with pytest.raises(UserError) as caught:
        run_stage(spec(stage, size=2), root)
    message = str(caught.value)
    assert "an unfinished result of 'work'" in message and "size was 1, is now 2" in message
    assert f"delete {root / 'work.partial'}" in message
    assert stage.runs == 1


def test_an_unfinished_stage_that_cannot_resume_takes_other_settings(root):
    stage = Counting(work=crash_at_first)
    with pytest.raises(Crash):
        run_stage(spec(stage), root)
    run_stage(spec(stage, size=2), root)
    assert manifest.read(root / "work")["config"]["size"] == 2


def test_a_partial_directory_without_a_note_is_begun_again(root):
    (root / "work.partial").mkdir(parents=True)
    (root / "work.partial" / "junk").touch()
    run_stage(spec(Counting(resumable=True)), root)
    assert not (root / "work" / "junk").exists()


@pytest.mark.parametrize("note_left", [True, False])
def test_a_crash_after_the_manifest_costs_nothing(root, note_left):
    stage = Counting(resumable=True)
    run_stage(spec(stage), root)
    (root / "work").rename(root / "work.partial")
    if note_left:
        (root / "work.partial" / UNFINISHED).write_text(json.dumps(manifest.read(root / "work.partial")))
    with pytest.raises(UserError, match="size was 1, is now 2"):
        run_stage(spec(stage, size=2), root)
    run_stage(spec(stage), root)
    assert stage.runs == 1
    assert sorted(p.name for p in (root / "work").iterdir()) == ["runs.txt", "stage.json"]


def test_what_only_a_continued_run_needs_goes_after_the_manifest_came(root, monkeypatch):
    def work(stage, out):
        (out / "checkpoints").mkdir(exist_ok=True)
        (out / "checkpoints" / str(stage.runs)).touch()

    stage = Counting(resumable=True, work=work, scratch=("checkpoints", "nothing"))
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_json", fails_for(manifest.FILE))
        with pytest.raises(OSError):
            run_stage(spec(stage), root)
    assert (root / "work.partial" / "checkpoints" / "1").exists()
    run_stage(spec(stage), root)
    assert sorted(p.name for p in (root / "work").iterdir()) == ["runs.txt", "stage.json"]
    assert manifest.read(root / "work")["files"].keys() == {"runs.txt"}


def test_a_full_disk_at_the_end_of_a_resumable_stage_keeps_what_it_needs_to_go_on(root, monkeypatch):
    stage = Counting(resumable=True)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_json", fails_for(manifest.FILE))
        with pytest.raises(OSError):
            run_stage(spec(stage), root)
    assert not (root / "work").exists()
    run_stage(spec(stage), root)
    assert (root / "work" / "runs.txt").read_text() == "run\nrun\n"  # gone on with, not begun again


# --- what decides about reuse -----------------------------------------------------------------------------------------


def refused(stage: StageSpec, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        run_stage(stage, root)
    message = str(caught.value)
    assert message.endswith(f"Choose another --out, change the settings back, or delete {root / 'work'}")
    return message.partition("other settings: ")[2].partition(". Choose")[0]


def test_a_refusal_names_exactly_what_differs(root):
    run_stage(spec(Counting()), root)
    other = Counting()
    settings = {"size": 7, "inner": {"rate": 0.25}}
    assert refused(spec(other, **settings), root) == "inner.rate was 0.5, is now 0.25; size was 1, is now 7"
    assert other.runs == 0


def test_other_content_is_refused_but_another_place_is_not(root, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one")
    stage = Counting()
    run_stage(spec(stage, path="text.txt"), root)
    (tmp_path / "moved").mkdir()
    moved = text.rename(tmp_path / "moved" / "text.txt")
    run_stage(spec(stage, path=str(moved)), root)
    run_stage(spec(stage, path=["moved/*.txt"]), root)
    assert stage.runs == 1
    moved.write_text("two")
    assert refused(spec(stage, path="moved/text.txt"), root) == ("the input path (moved/text.txt) has another content")


def test_inputs_that_come_or_go_are_named(root, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    run_stage(spec(Counting(), path=["a", "b"]), root)
    assert refused(spec(Counting(), path=["a"]), root) == "the input path (a) has another content"
    assert refused(spec(Counting()), root) == "the input path (now unset) has another content"
    assert refused(spec(Counting(), path=["a", "b"], other="a"), root) == "the input other (a) has another content"
    assert refused(spec(Counting(), path=["b", "a"]), root).startswith("the inputs are in another order")


def test_a_stage_above_that_was_made_anew_counts_as_other_content(root):
    run_stage(spec(Counting(), name="above"), root)
    run_stage(spec(Counting(), path="@above/runs.txt"), root)
    shutil.rmtree(root / "above")
    run_stage(spec(Counting(), name="above", size=2), root)
    assert refused(spec(Counting(), path="@above/runs.txt"), root) == (
        "the input path (../above/runs.txt) has another content"
    )


def test_a_file_edited_in_an_artifact_is_noticed(root):
    """Of the same size, too: by the stage itself, and by one that reads it."""
    run_stage(spec(Counting(), name="above"), root)
    run_stage(spec(Counting(), path="@above/runs.txt"), root)
    (root / "above" / "runs.txt").write_text("sun\n")
    with pytest.raises(UserError, match=r"above was changed after it was made: runs.txt; delete .* or copy what you"):
        run_stage(spec(Counting(), name="above"), root)
    content = "the input path (../above/runs.txt) has another content"
    assert refused(spec(Counting(), path="@above/runs.txt"), root) == content
    assert refused(spec(Counting(), path=[str(root / "above" / "runs.txt")]), root) == content
    edited = spec(Counting(), name="new", path="@above/runs.txt")
    run_stage(edited, root)  # a new stage takes it as it is, and its manifest says so
    (entry,) = manifest.read(root / "new")["inputs"]
    assert entry["fingerprint"] != manifest.read(root / "work")["inputs"][0]["fingerprint"]
    run_stage(edited, root)


@pytest.mark.parametrize("note", ["", "{", "[]", "{}", '{"fingerprint": 1}', '{"stage": "work", "config": {}}'])
def test_a_damaged_note_costs_nothing_that_took_time(root, note):
    stage = Counting(resumable=True, work=crash_at_first)
    with pytest.raises(Crash):
        run_stage(spec(stage), root)
    (root / "work.partial" / UNFINISHED).write_text(note)
    with pytest.raises(UserError, match=r"holds checkpoints, but what .* \(unfinished.json\) cannot be read"):
        run_stage(spec(stage), root)
    assert (root / "work.partial" / "runs.txt").exists()


def test_without_anything_to_lose_other_settings_are_taken(root):
    def crash_before_anything(stage, out):
        if stage.runs == 1:
            (out / "runs.txt").unlink()
            raise Crash

    stage = Counting(resumable=True, work=crash_before_anything)
    with pytest.raises(Crash):
        run_stage(spec(stage), root)
    run_stage(spec(stage, size=2), root)
    assert manifest.read(root / "work")["config"]["size"] == 2


def test_what_a_continued_run_needs_goes_after_the_artifact_has_its_name(root, monkeypatch):
    def work(stage, out):
        (out / "checkpoints").mkdir(exist_ok=True)

    stage = Counting(resumable=True, work=work, scratch=("checkpoints",))

    def crash(*_, **__):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(durable, "rename", crash)
        with pytest.raises(Crash):
            run_stage(spec(stage), root)
    assert (root / "work.partial" / "checkpoints").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash)
        with pytest.raises(Crash):
            run_stage(spec(stage), root)
    assert (root / "work" / "checkpoints").is_dir()  # a crash just before they go
    run_stage(spec(stage), root)
    assert stage.runs == 1
    assert sorted(p.name for p in (root / "work").iterdir()) == ["runs.txt", "stage.json"]


def test_inputs_are_resolved(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text.txt").touch()
    run_stage(spec(Counting(), name="above"), root)
    stage = Counting()
    run_stage(spec(stage, path=["@above", "@above/runs.txt", "~/text.txt"], other="text.txt"), root)
    assert stage.inputs == {
        "path": [root / "above", root / "above" / "runs.txt", tmp_path / "text.txt"],
        "other": [Path("text.txt")],
    }


def test_what_the_stage_above_did_not_write(root):
    run_stage(spec(Counting(), name="above"), root)
    with pytest.raises(UserError, match=r"work.path: '@above/x' is not there; the stage above did not write it"):
        run_stage(spec(Counting(), path="@above/x"), root)
    assert not (root / "work.partial").exists()


# --- damage and foreign things ----------------------------------------------------------------------------------------


def test_a_damaged_artifact_is_not_taken_for_whole(root):
    run_stage(spec(Counting()), root)
    (root / "work" / "runs.txt").write_text("cut")
    with pytest.raises(UserError, match=r"is damaged: runs.txt missing or of another size; delete .* and run again"):
        run_stage(spec(Counting()), root)
    (root / "work" / "runs.txt").unlink()
    with pytest.raises(UserError, match=r"is damaged: runs.txt"):
        run_stage(spec(Counting()), root)


def test_a_truncated_manifest(root):
    run_stage(spec(Counting()), root)
    path = root / "work" / manifest.FILE
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=r"stage.json is damaged .*; delete .* and run again"):
        run_stage(spec(Counting()), root)


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_foreign_directory_is_left_alone(root, content):
    (root / "work").mkdir(parents=True)
    if content:
        (root / "work" / manifest.FILE).write_text(content)
    with pytest.raises(UserError, match="exists but no stage wrote it; delete it or choose another --out"):
        run_stage(spec(Counting()), root)


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_until_stops_after_a_stage_and_the_next_run_goes_on(root):
    stages = [Counting(), Counting()]
    recipe = Recipe("r", [spec(stages[0], name="one"), spec(stages[1], name="two")])
    run_recipe(recipe, root, "one")
    assert [stage.runs for stage in stages] == [1, 0]
    run_recipe(recipe, root, None)
    assert [stage.runs for stage in stages] == [1, 1]
    with pytest.raises(UserError, match="--until three: the recipe has no such stage; it has one, two"):
        run_recipe(recipe, root, "three")


def test_two_runs_in_one_output_directory(root):
    root.mkdir()
    stage = Counting()
    recipe = Recipe("r", [spec(stage)])
    with open(root / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another run is working in .*; wait for it or choose another --out"):
            run_recipe(recipe, root, None)
    run_recipe(recipe, root, None)
    run_recipe(recipe, root, None)
    assert stage.runs == 1


def test_where_files_cannot_be_locked_a_run_goes_on(root, monkeypatch):
    def unsupported(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    run_recipe(Recipe("r", [spec(Counting())]), root, None)
    assert (root / "work").is_dir()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_output_directory_that_is_a_file(root, tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file or lies below one; choose another --out"):
        run_recipe(Recipe("r", [spec(Counting())]), tmp_path / name, None)


def test_a_stage_without_a_seed_says_so(root):
    @config
    class Seedless:
        size: int = 1

    run_stage(StageSpec("work", "work", dataclasses.replace(Counting().stage, run=lambda *_: None), Seedless()), root)
    assert manifest.read(root / "work")["seed"] is None


def test_a_stage_under_another_name_fills_a_directory_of_that_name_and_knows_what_it_is(root):
    stage = Counting()
    run_recipe(Recipe("r", [spec(stage), StageSpec("again", "work", stage.stage, Config(path="@work"))]), root, "again")
    assert stage.runs == 2 and stage.inputs == {"path": [root / "work"]}
    assert manifest.read(root / "again")["stage"] == "again"
    assert manifest.read(root / "again")["config"]["stage"] == "work"
    with pytest.raises(UserError, match="stage was 'work', is now 'other'"):
        run_stage(StageSpec("again", "other", stage.stage, Config(path="@work")), root)


# --- nested tables ----------------------------------------------------------------------------------------------------


@config
class Judge:
    model: Annotated[str, Input("thing")] | None = None
    share: float = 0.5
    threads: Annotated[int, HOW] = 1


@config
class Nesting:
    judge: Judge = Judge()
    seed: int = 0


def test_inputs_and_hows_in_nested_tables_are_resolved_compared_and_recorded_like_the_others(root):
    counting = Counting()
    run_stage(spec(counting, name="above"), root)

    def run(**judge):
        nesting = Nesting(judge=Judge(model="@above", **judge))
        run_stage(StageSpec("work", "work", dataclasses.replace(counting.stage, config=Nesting), nesting), root)

    run()
    assert counting.inputs == {"judge.model": [root / "above"]}
    record = manifest.read(root / "work")
    assert record["config"] == {"judge": {"share": 0.5}, "seed": 0} and record["how"] == {"judge.threads": 1}
    assert [entry["field"] for entry in record["inputs"]] == ["judge.model"]
    run(threads=8)
    assert counting.runs == 2
    with pytest.raises(UserError, match=r"judge\.share was 0\.5, is now 0\.25"):
        run(share=0.25)
    shutil.rmtree(root / "above")
    run_stage(spec(counting, name="above", size=2), root)
    with pytest.raises(UserError, match=r"the input judge\.model \(\.\./above\) has another content"):
        run()
