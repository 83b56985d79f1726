"""Run the stages of a recipe: each atomic, cached by fingerprint, resumable, traceable."""

import contextlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mengya import __version__, durable, hub, manifest, ranks, runtime
from mengya.errors import UserError
from mengya.manifest import UNFINISHED
from mengya.metrics import format_seconds, say
from mengya.recipe import Recipe, StageSpec
from mengya.schema import as_json, how_of, what_of
from mengya.stage import Inputs

_LIBRARIES = ("torch", "tokenizers", "safetensors", "numpy")


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One run at a time in an output directory; the lock goes with the process, however it ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{root} is a file or lies below one; choose another --out") from None
    with open(root / ".lock", "w") as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is working in {root}; wait for it or choose another --out") from None
        except (ImportError, OSError):  # Windows, and file systems without locks: no protection
            pass
        yield


def _paths(spec: StageSpec, root: Path) -> dict[str, list[Path]]:
    """Input field -> paths; "@name/file" becomes root/name/file."""
    return {
        field: [root / v[1:] if v.startswith("@") else hub.located(v) for v in values]
        for field, values in spec.references.items()
    }


def _resolve(spec: StageSpec, root: Path) -> dict[str, list[Path]]:
    """The paths of all inputs; UserError if one is not there."""
    found = _paths(spec, root)
    for field, values in spec.references.items():
        for value, path in zip(values, found[field], strict=True):
            if not manifest.matches(str(path)):
                reason = "the stage above did not write it" if value.startswith("@") else "correct the path"
                raise UserError(f"{spec.name}.{field}: {value!r} is not there; {reason}")
    return found


def _identity(spec: StageSpec, inputs: Inputs, out: Path) -> dict:
    """What decides whether an artifact can be reused, and its fingerprint. Input paths may move, contents may not."""
    config = what_of(spec.config)
    if spec.kind != spec.name:
        config["stage"] = spec.kind
    entries = [_entry(field, path, out) for field, paths in inputs.items() for path in paths]
    compared = [spec.name, config, [[e["field"], e["fingerprint"]] for e in entries]]
    return {"stage": spec.name, "fingerprint": manifest.digest(compared), "config": config, "inputs": entries}


def _entry(field: str, path: Path, out: Path) -> dict:
    """An input as the manifest names it; the paths of artifacts are relative, so that an output directory may move."""
    prints = manifest.fingerprints_of(manifest.matches(str(path)), out.parent)
    artifact = manifest.find(path) is not None
    return {
        "field": field,
        "path": Path(os.path.relpath(path, out)).as_posix() if artifact else hub.name_of(path) or str(path),
        "artifact": artifact,
        "fingerprint": prints[0] if len(prints) == 1 else manifest.digest(prints),
    }


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flatten(inner, f"{prefix}.{key}").items()}
    return {prefix.lstrip("."): value}


def _differences(old: dict, new: dict) -> str:
    before, after = _flatten(old["config"]), _flatten(new["config"])
    lines = [
        f"{key} was {before.get(key)!r}, is now {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    old_inputs, new_inputs = ([(e["field"], e["fingerprint"]) for e in record["inputs"]] for record in (old, new))
    changed = dict.fromkeys(field for field, _ in set(old_inputs) ^ set(new_inputs))
    for field in sorted(changed):
        paths = ", ".join(e["path"] for e in new["inputs"] if e["field"] == field) or "now unset"
        lines.append(f"the input {field} ({paths}) has another content")
    return "; ".join(lines) or "the inputs are in another order, or given another number of times"


def _refuse(spec: StageSpec, out: Path, old: dict, new: dict, kind: str) -> UserError:
    differences = _differences(old, new)
    longer = all(text.startswith(("steps was", "epochs was")) for text in differences.split("; "))
    further = ""
    if longer and "model" in spec.stage.makes and kind == "a result":
        further = f'. To train it further, make a new stage that starts from it (init or model = "@{spec.name}")'
    return UserError(
        f"{out} holds {kind} of {spec.name!r} made with other settings: {differences}. "
        f"Choose another --out, change the settings back, or delete {out}{further}"
    )


class _Work(NamedTuple):
    """What a stage that has to run is given."""

    inputs: dict[str, list[Path]]
    identity: dict


def run_stage(spec: StageSpec, root: Path) -> bool:
    """Fill root/<name>; nothing is there until it is whole. Returns whether there was anything to do.

    Under torchrun all ranks take part in a distributed stage; for the others they wait until rank 0 is done.
    """
    out = root / spec.name
    partial = out.with_name(f"{out.name}.partial")
    work = ranks.on_main(lambda: _begin(spec, root, out, partial))
    if work is not None:
        _work(spec, work, partial)
        ranks.on_main(lambda: _finish(spec, out, partial))
    return work is not None


def _begin(spec: StageSpec, root: Path, out: Path, partial: Path) -> _Work | None:
    """What is to be done; None: nothing, the artifact is there."""
    inputs = _resolve(spec, root)
    identity = _identity(spec, inputs, out)
    if _is_done(spec, out, identity):
        say(f"✓ {spec.name}: already there")
        return None
    _prepare(spec, partial, identity)
    if manifest.read(partial) is not None:  # it only lacks its name: a crash came in between
        _finish(spec, out, partial)
        return None
    say(f"▶ {spec.name}")
    return _Work(inputs, identity)


def _work(spec: StageSpec, work: _Work, partial: Path) -> None:
    """Run the stage on the ranks that take part in it."""
    if not spec.stage.distributed:
        ranks.on_main(lambda: _fill(spec, work, partial))
        return
    if not partial.is_dir():
        raise UserError(f"rank {ranks.rank()} does not see {partial}; all nodes must share the output directory")
    if ranks.is_main():
        _fill(spec, work, partial)
    else:
        peak = runtime.PeakMemory()
        spec.stage.run(spec.config, work.inputs, partial)
        _peaks(spec, peak)


def _finish(spec: StageSpec, out: Path, partial: Path) -> None:
    """Give a whole artifact, which is flushed, its name. What it was made from goes only after that."""
    record = manifest.read(partial)
    assert record is not None, "_fill has written it"
    durable.rename(partial, out)
    _tidy(spec, out)
    say(f"✓ {spec.name}: {format_seconds(record['seconds'])}")


def _tidy(spec: StageSpec, out: Path) -> None:
    """Delete what only an unfinished stage needs."""
    (out / UNFINISHED).unlink(missing_ok=True)
    for name in spec.stage.scratch:
        shutil.rmtree(out / name, ignore_errors=True)


def _is_done(spec: StageSpec, out: Path, identity: dict) -> bool:
    """Whether the artifact is there. UserError if it is another one, or no longer what the stage wrote."""
    done = manifest.read(out)
    if done is None:
        if out.exists():
            raise UserError(f"{out} exists but no stage wrote it; delete it or choose another --out")
        return False
    if done["fingerprint"] != identity["fingerprint"]:
        raise _refuse(spec, out, done, identity, "a result")
    sizes = {name: (out / name).stat().st_size if (out / name).is_file() else None for name in done["files"]}
    damaged = [name for name, size in done["files"].items() if sizes[name] != size]
    if damaged:
        raise UserError(
            f"{out} is damaged: {', '.join(damaged)} missing or of another size; delete {out} and run again"
        )
    with manifest.Digests(out.parent) as sha256:
        edited = manifest.changed_files(out, done, sha256)
    if edited:
        raise UserError(
            f"{out} was changed after it was made: {', '.join(edited)}; delete {out} and run again, or copy what you "
            "changed to a place of your own and give that path"
        )
    _tidy(spec, out)  # if a crash came before
    return True


def _fill(spec: StageSpec, work: _Work, partial: Path) -> None:
    """Run the stage, flush what it wrote, and write its manifest last."""
    note, peak = partial / UNFINISHED, runtime.PeakMemory()
    begin, started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    earlier = json.loads(note.read_text(encoding="utf-8")).get("seconds", 0.0)
    try:
        spec.stage.run(spec.config, work.inputs, partial)
    finally:
        seconds = earlier + time.monotonic() - begin
        with contextlib.suppress(OSError):  # what happened in `run` matters more
            durable.write_json(note, work.identity | {"seconds": seconds})
    peaks = _peaks(spec, peak)
    durable.flush_tree(partial, without=spec.stage.scratch)
    files = _files(spec, partial)
    record = work.identity | {
        "makes": spec.stage.makes,
        "seed": getattr(spec.config, "seed", None),
        "how": as_json(how_of(spec.config)),
        "ranks": ranks.size() if spec.stage.distributed else 1,
        "versions": {"mengya": __version__} | {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "machine": runtime.describe_machine(),
        "started": started,
        "seconds": round(seconds, 2),
        **peaks,
        "files": {name: path.stat().st_size for name, path in files.items()},
        "sha256": {name: manifest.sha256_of(path) for name, path in files.items()},
    }
    durable.write_json(partial / manifest.FILE, record)


def _peaks(spec: StageSpec, peak: runtime.PeakMemory) -> dict[str, int | None]:
    """The most memory that the stage took, of the rank that took most; if it was resumed, since then."""
    found = {"peak_memory_bytes": peak.host(), "peak_device_memory_bytes": peak.device()}
    return {name: ranks.most_of(value) for name, value in found.items()} if spec.stage.distributed else found


def _files(spec: StageSpec, partial: Path) -> dict[str, Path]:
    """What a stage wrote, by name; without what is deleted in the end."""
    found = {p.relative_to(partial): p for p in sorted(partial.rglob("*")) if p.is_file()}
    skipped = (UNFINISHED, *spec.stage.scratch)
    return {name.as_posix(): path for name, path in found.items() if name.parts[0] not in skipped}


def _prepare(spec: StageSpec, partial: Path, identity: dict) -> None:
    """An empty partial directory, or the one that a resumable stage left behind with the same settings.

    UserError if one with other settings, or none that can be read, would cost what took time to make.
    """
    if partial.exists():
        old, progress = _note(partial), spec.stage.progress
        if progress is not None and old is not None and old["fingerprint"] == identity["fingerprint"]:
            return
        if progress is not None and progress(partial):
            if old is None:
                raise UserError(
                    f"{partial} holds checkpoints, but what they were made with ({UNFINISHED}) cannot be read. Choose "
                    f"another --out (`mengya export {partial} NAME` makes a model of it), or delete {partial}"
                )
            raise _refuse(spec, partial, old, identity, "an unfinished result")
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    durable.flush(partial.parent)
    durable.write_json(partial / UNFINISHED, identity)


def _note(partial: Path) -> dict | None:
    """What a half-filled directory is made with; None if nothing in it says so."""
    for name in (manifest.FILE, UNFINISHED):
        with contextlib.suppress(OSError, ValueError):
            note = json.loads((partial / name).read_text(encoding="utf-8"))
            if isinstance(note, dict) and _NOTED.items() <= {key: type(note.get(key)) for key in note}.items():
                return note
    return None


_NOTED = {"stage": str, "fingerprint": str, "config": dict, "inputs": list}


def run_recipe(recipe: Recipe, root: Path, until: str | None) -> None:
    """Run the stages in order, up to and including `until`."""
    names = [spec.name for spec in recipe.stages]
    if until is not None and until not in names:
        raise UserError(f"--until {until}: the recipe has no such stage; it has {', '.join(names)}")
    last = names.index(until) if until else len(names) - 1
    chosen = recipe.stages[: last + 1]
    with _locked(root) if ranks.is_main() else contextlib.nullcontext():
        ran = [run_stage(spec, root) for spec in chosen]
        if any(ran) and ranks.is_main():
            say(_minutes(chosen, root))


def _minutes(stages: Sequence[StageSpec], root: Path) -> str:
    """How long each stage took, whenever it was run."""
    records = {spec.name: manifest.read(root / spec.name) for spec in stages}
    minutes = {name: record["seconds"] / 60 for name, record in records.items() if record}
    parts = ", ".join(f"{name} {value:.1f}" for name, value in minutes.items())
    return f"minutes: {parts}; {sum(minutes.values()):.1f} in all"
