"""Where checkpoints meet the disk: writing a directory whole or not at all, and verifying it when it is read."""

import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from mengya import __version__, durable, manifest
from mengya.errors import UserError

RECORD = "checkpoint.json"
"""Written last: a directory without it is not a checkpoint."""
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is whole on disk."""

    path: Path
    step: int
    """Steps that are done: the next one to take."""
    state: dict
    """Plain values of the run."""
    shapes: dict[str, list[int]]
    """What it holds: global shapes by name."""


def hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def remove(path: Path) -> None:
    """Delete a checkpoint in such a way that a crash never leaves half of one under its name."""
    trash = hidden(path, "partial")
    shutil.rmtree(trash, ignore_errors=True)
    path.rename(trash)
    if trash.is_dir():
        shutil.rmtree(trash)
    else:
        trash.unlink()


def steps_in(root: Path) -> list[Path]:
    """The step checkpoints below `root`, whole or damaged, oldest first."""
    found = {int(m[1]): path for path in root.glob("step-*") if (m := re.fullmatch(r"step-(\d+)", path.name))}
    return [found[step] for step in sorted(found)]


def recover(root: Path) -> None:
    """Tidy up after a crash: what was being written goes, and what was being replaced comes back."""
    for old in root.glob(".*.old"):
        name = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
        if name.exists():
            shutil.rmtree(old)
        else:
            old.rename(name)
    for partial in root.glob(".*.partial"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def _publish(partial: Path, path: Path) -> None:
    """Rename, replacing an older one if there is one; `recover` repairs a crash in between."""
    old = hidden(path, "old")
    if path.exists():
        path.rename(old)
    durable.rename(partial, path)
    shutil.rmtree(old, ignore_errors=True)


class Writer(StorageWriter):
    """One safetensors file a rank, each hashed and flushed by its rank; the coordinator adds the JSON and renames."""

    def __init__(
        self,
        path: Path,
        keep: int,
        keep_too: str,
        record: dict,
        config: dict,
        stage: Callable[[Tensors], Tensors],
    ):
        """`keep`: newest step checkpoints that stay, and with them the one called `keep_too`. `record`: step and state.
        `config`: content of config.json.

        `stage`: contiguous tensors of this rank's share in host memory, given those of the run.
        """
        self._path, self._partial, self._keep, self._keep_too = path, hidden(path, "partial"), keep, keep_too
        self._record, self._config, self._stage = record, config, stage

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True

    def set_up_storage_writer(self, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        self._rank = kwargs.get("rank", 0)
        if is_coordinator:  # before any rank gets its plan, so before any writes
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self._ranks = len(plans)
        return plans

    @torch.no_grad()
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors = self._stage({item.index.fqn: planner.resolve_data(item) for item in plan.items})  # type: ignore[misc]
        written: Future[list[WriteResult]] = Future()
        if not tensors:
            written.set_result([])
            return written
        offsets = {i.index.fqn: {"saved_offsets": list(i.tensor_data.chunk.offsets)} for i in plan.items}  # type: ignore[union-attr]
        name = f"rank-{self._rank}.safetensors"
        path = self._partial / name
        try:  # the metadata is what torch's HuggingFaceStorageReader looks for
            save_file(tensors, path, {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)})
        except SafetensorError as error:  # its message hides the system's error number
            number = re.search(r"os error (\d+)", str(error))
            raise (OSError(int(number[1]), str(error), str(path)) if number else OSError(f"{path}: {error}")) from error
        durable.flush(path)
        written.set_result([WriteResult(MetadataIndex(name), path.stat().st_size, manifest.sha256_of(path))])
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._write_json("config.json", self._config)
        written = {r.index.fqn: {"bytes": r.size_in_bytes, "sha256": r.storage_data} for rank in results for r in rank}
        for name, file in written.items():
            if not (self._partial / name).is_file() or (self._partial / name).stat().st_size != file["bytes"]:
                raise UserError(
                    f"{self._path.parent} is not the same directory on all nodes; choose an --out that they share"
                )
        config = self._partial / "config.json"
        libraries = {name: importlib.metadata.version(name) for name in ("torch", "safetensors")}
        stored = metadata.state_dict_metadata.items()
        record = self._record | {
            "ranks": self._ranks,
            "versions": {"mengya": __version__} | libraries,
            "files": written | {"config.json": {"bytes": config.stat().st_size, "sha256": manifest.sha256_of(config)}},
            "shapes": {name: list(t.size) for name, t in stored if isinstance(t, TensorStorageMetadata)},
        }
        record = json.loads(json.dumps(record))  # as it will be read: numbers as keys become text
        self._write_json(RECORD, record | {"digest": manifest.digest(record)})
        durable.flush(self._partial)
        _publish(self._partial, self._path)
        for old in steps_in(self._path.parent)[: -self._keep]:
            if old.name != self._keep_too:
                remove(old)

    def _write_json(self, name: str, value: dict) -> None:
        path = self._partial / name
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        durable.flush(path)


def verify(path: Path) -> Saved:
    """Read every byte and compare its hash. UserError if the checkpoint is not there or not whole."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.pop("digest", None) != manifest.digest(record):
            raise ValueError(f"{RECORD} is damaged")
        files: dict[str, dict] = record["files"]
        for name, file in files.items():
            size = (path / name).stat().st_size
            if size != file["bytes"]:
                raise ValueError(f"{name} has {size} bytes instead of {file['bytes']}")
        with ThreadPoolExecutor(min(len(files), os.cpu_count() or 1)) as threads:
            found = threads.map(manifest.sha256_of, [path / name for name in files])
            for name, value in zip(files, found, strict=True):
                if value != files[name]["sha256"]:
                    raise ValueError(f"the content of {name} has changed")
    except (OSError, ValueError) as error:
        raise UserError(f"the checkpoint {path} cannot be read ({error}); delete it to go on without it") from error
    return Saved(path, record["step"], record["state"], record["shapes"])
