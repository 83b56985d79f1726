"""Run one stage: atomic, cached by fingerprint, resumable, traceable."""

import contextlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mengya import __version__, manifest, runtime
from mengya.errors import UserError
from mengya.metrics import format_seconds, say
from mengya.recipe import Recipe, StageSpec
from mengya.schema import as_dict, input_fields

UNFINISHED = "unfinished.json"
_LIBRARIES = ("torch", "tokenizers", "safetensors", "numpy")


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One run at a time in an output directory; the lock goes with the process, however it ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = open(root / ".lock", "w")  # noqa: SIM115 (held for the whole run)
    except FileExistsError:
        raise UserError(f"{root} is a file; choose another --out") from None
    with handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows: opening for writing is all the protection there is
            pass
        except OSError:
            raise UserError(f"another run is working in {root}; wait for it or choose another --out") from None
        yield


def _resolve(spec: StageSpec, root: Path) -> dict[str, list[Path]]:
    """Input field -> paths; "@name/file" becomes root/name/file."""
    found: dict[str, list[Path]] = {}
    for field, values in spec.references.items():
        found[field] = [root / v[1:] if v.startswith("@") else Path(v) for v in values]
        for value, path in zip(values, found[field], strict=True):
            if value.startswith("@") and not path.exists():
                raise UserError(f"{spec.name}.{field}: {value!r} is not there; the stage above did not write it")
    return found


def _identity(spec: StageSpec, inputs: dict[str, list[Path]], out: Path) -> dict:
    """What decides whether an artifact can be reused, and its fingerprint. Input paths may move, contents may not."""
    config = {k: v for k, v in as_dict(spec.config).items() if k not in input_fields(type(spec.config))}
    entries = []
    for field, paths in inputs.items():
        for value, path in zip(spec.references[field], paths, strict=True):
            artifact = value.startswith("@")
            shown = os.path.relpath(path, out) if artifact else value
            prints = [manifest.fingerprint_of(p) for p in _expand(path)]
            entries.append(
                {
                    "field": field,
                    "path": shown,
                    "artifact": artifact,
                    "fingerprint": prints[0] if len(prints) == 1 else manifest.digest(prints),
                }
            )
    compared = [spec.name, config, [[e["field"], e["fingerprint"]] for e in entries]]
    return {"stage": spec.name, "fingerprint": manifest.digest(compared), "config": config, "inputs": entries}


def _expand(path: Path) -> list[Path]:
    """A glob's matches, or the path itself."""
    if path.exists() or not any(ch in str(path) for ch in "*?["):
        return [path]
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    return sorted(anchor.glob(str(path.relative_to(anchor)))) or [path]


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
    old_inputs = {(e["field"], e["fingerprint"]) for e in old["inputs"]}
    lines += [f"the input {e['field']} changed" for e in new["inputs"] if (e["field"], e["fingerprint"]) not in old_inputs]
    return "; ".join(lines) or "the number of inputs changed"


def _refuse(spec: StageSpec, out: Path, old: dict, new: dict, kind: str) -> UserError:
    return UserError(
        f"{out} holds {kind} of {spec.name!r} made with other settings: {_differences(old, new)}. "
        f"Choose another --out, change the settings back, or delete {out}"
    )


def run_stage(spec: StageSpec, root: Path) -> None:
    """Fill root/<name>; nothing is there until it is whole."""
    out = root / spec.name
    partial = out.with_name(f"{out.name}.partial")
    inputs = _resolve(spec, root)
    identity = _identity(spec, inputs, out)
    done = manifest.read(out)
    if done:
        if done["fingerprint"] != identity["fingerprint"]:
            raise _refuse(spec, out, done, identity, "a result")
        say(f"✓ {spec.name}: already there")
        return
    if out.exists():
        raise UserError(f"{out} exists but no stage wrote it; delete it or choose another --out")
    _prepare(spec, partial, identity)
    begin, started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    earlier = json.loads((partial / UNFINISHED).read_text(encoding="utf-8")).get("seconds", 0.0)
    say(f"▶ {spec.name}")
    try:
        spec.module.run(spec.config, inputs, partial)
    finally:
        seconds = earlier + time.monotonic() - begin
        if (partial / UNFINISHED).exists():
            with contextlib.suppress(OSError):
                (partial / UNFINISHED).write_text(json.dumps(identity | {"seconds": seconds}), encoding="utf-8")
    files = {p.relative_to(partial).as_posix(): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
    del files[UNFINISHED]
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    record = identity | {
        "seed": getattr(spec.config, "seed", None),
        "versions": {"mengya": __version__} | versions,
        "machine": runtime.describe_machine(),
        "started": started,
        "seconds": round(seconds, 2),
        "peak_memory_bytes": runtime.peak_memory(),
        "files": files,
    }
    (partial / UNFINISHED).unlink()
    (partial / manifest.FILE).write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    partial.rename(out)
    say(f"✓ {spec.name}: {format_seconds(seconds)}")


def _prepare(spec: StageSpec, partial: Path, identity: dict) -> None:
    """An empty partial directory, or the one that a resumable stage left behind with the same settings."""
    note = partial / UNFINISHED
    if partial.exists():
        old = None
        with contextlib.suppress(OSError, ValueError):
            old = json.loads(note.read_text(encoding="utf-8"))
        resumable = getattr(spec.module, "RESUMABLE", False) and old is not None
        if resumable and old and old["fingerprint"] == identity["fingerprint"]:
            return
        if resumable and old:
            raise _refuse(spec, partial, old, identity, "an unfinished result")
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    note.write_text(json.dumps(identity), encoding="utf-8")


def run_recipe(recipe: Recipe, root: Path, until: str | None) -> None:
    """Run the stages in order, up to and including `until`."""
    names = [spec.name for spec in recipe.stages]
    if until is not None and until not in names:
        raise UserError(f"--until {until}: the recipe has no such stage; it has {', '.join(names)}")
    last = names.index(until) if until else len(names) - 1
    with _locked(root):
        for spec in recipe.stages[: last + 1]:
            run_stage(spec, root)
