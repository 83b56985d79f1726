"""Checkpoints: everything a run needs to go on bit by bit, whole or not at all, without pickles.

They move between engines and numbers of ranks, because a tensor has its global name and shape whoever holds its parts.
"""

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, DefaultLoadPlanner, DefaultSavePlanner, StorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mengya import ranks
from mengya.errors import UserError
from mengya.metrics import say
from mengya.train.checkpoint_storage import Saved, Writer, hidden, recover, remove, steps_in, verify


class Checkpoints:
    """The checkpoints in one directory, which all ranks share. Construct and call on all ranks alike.

    Tensors are named `model.<name>`, `optimizer.<moment>.<name>` and `rng.<rank>`. A plain tensor is the same on every
    rank that gives it and is written by one of them; of a DTensor each rank writes its part. Replicas share the work.
    """

    def __init__(self, root: Path, keep: int, config: dict, asynchronous: bool):
        """`keep`: so many of the newest `step-*` stay. `config`: the content of config.json, which is put into each.

        `asynchronous`: `save` returns once the state is copied.
        """
        self._root, self._keep, self._config = root, keep, config
        # Its own group: the writing thread must not get between the collectives of training. The limit is long, because
        # disks may be slow, and a rank that dies is noticed anyway.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=1)) if ranks.size() > 1 else None
        self._thread = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._pending: Future[None] | None = None
        self._buffers: dict[str, Tensor] = {}

    def save(self, name: str, step: int, tensors: Mapping[str, Tensor], state: dict, keep_too: str = "") -> None:
        """Write `name` ("step-40", "best"), replacing one of that name, and rotate; the one called `keep_too` stays.

        A crash at any moment leaves the old or the new one, whole. OSError (a full disk, say) leaves the old one; when
        asynchronous it comes from the next `save` or `wait`.
        """
        self.wait()
        if self._thread is None:
            self._write(name, step, tensors, state, keep_too, _on_host)
            return
        staged = threading.Event()
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

        def work() -> None:
            if device is not None:  # a thread begins on device 0
                torch.cuda.set_device(device)
            self._write(name, step, tensors, state, keep_too, lambda share: self._copy(share, staged))

        self._pending = self._thread.submit(work)
        self._pending.add_done_callback(lambda _: staged.set())
        staged.wait()

    def wait(self) -> None:
        """Until the last save is on disk; raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(
        self, name: str, step: int, tensors: Mapping[str, Tensor], state: dict, keep_too: str, stage: Callable
    ) -> None:
        path = self._root / name
        writer = Writer(path, self._keep, keep_too, {"step": step, "state": state}, self._config, stage)
        try:
            _save(dict(tensors), writer, self._group)
        except BaseException:
            if ranks.is_main():  # all ranks have stopped writing
                shutil.rmtree(hidden(path, "partial"), ignore_errors=True)
            raise

    def _copy(self, share: dict[str, Tensor], staged: threading.Event) -> dict[str, Tensor]:
        """Copies in host memory that is used again at the next save."""
        share = {name: tensor.detach() for name, tensor in share.items()}
        for name, tensor in share.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._buffers[name] = buffer
            buffer.copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in share.values()):
            torch.cuda.synchronize()
        staged.set()
        return {name: self._buffers[name] for name in share}

    def latest(self) -> Saved | None:
        """The newest step checkpoint that is whole; damaged ones are named and deleted. None: there is none.

        Removes what a killed run left half done.
        """
        self.wait()

        def find() -> Saved | None:
            recover(self._root)
            for path in reversed(steps_in(self._root)):
                try:
                    return verify(path)
                except UserError as error:
                    say(f"passing over a damaged checkpoint: {error}")
                    remove(path)
            return None

        return ranks.on_main(find)

    def load(self, saved: Saved, tensors: Mapping[str, Tensor]) -> None:
        """Fill `tensors` in place, whatever their device and sharding; each rank reads only what it needs.

        UserError, before anything is changed, if names or shapes differ. Only random states may be missing on either
        side, where the number of ranks has changed: those stay as they are.
        """
        wanted = {n: t for n, t in tensors.items() if n in saved.shapes or not n.startswith("rng.")}
        shapes = {name: list(tensor.shape) for name, tensor in wanted.items()}
        if self._group:
            of_ranks: list[dict[str, list[int]]] = [{}] * ranks.size()
            dist.all_gather_object(of_ranks, shapes, self._group)
            shapes = {name: shape for each in of_ranks for name, shape in each.items()}
        held = {name: shape for name, shape in saved.shapes.items() if name in shapes or not name.startswith("rng.")}
        if shapes != held:
            raise UserError(
                f"the checkpoint {saved.path} belongs to a model of another shape, or was made with another optimizer "
                f"({_difference(held, shapes)}); delete the unfinished run or change back"
            )
        _load(dict(wanted), saved, self._group)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint (those that were trained), by the model's own names, verified.

    UserError if it is damaged.
    """
    saved = verify(path)
    held = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    weights = {
        name: torch.empty(tensor.size, dtype=tensor.properties.dtype)
        for name, tensor in held.items()
        if name.startswith("model.") and isinstance(tensor, TensorStorageMetadata)
    }
    _load(weights, saved, None)
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def _on_host(share: dict[str, Tensor]) -> dict[str, Tensor]:
    """No copy of what is there already."""
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in share.items()}


def _difference(held: dict[str, list[int]], wanted: dict[str, list[int]]) -> str:
    lines = [f"{name}: not in the checkpoint" for name in wanted.keys() - held.keys()]
    lines += [f"{name}: only in the checkpoint" for name in held.keys() - wanted.keys()]
    common = sorted(held.keys() & wanted.keys())
    lines += [f"{n}: {held[n]} in it, {wanted[n]} here" for n in common if held[n] != wanted[n]]
    return "; ".join(sorted(lines)[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")


def _save(tensors: dict[str, Tensor], writer: StorageWriter, group: dist.ProcessGroup | None) -> None:
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    if group:
        with _plain_errors():
            dcp.save(tensors, storage_writer=writer, planner=planner, process_group=group)
        return
    # What `dcp.save` does without ranks, which it warns of each time.
    planner.set_up_planner(tensors, storage_meta=None, is_coordinator=True)
    writer.set_up_storage_writer(True)
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    (plan,) = writer.prepare_global_plan(plans)
    writer.finish(metadata, [writer.write_data(planner.finish_plan(plan), planner).wait()])


def _load(tensors: dict[str, Tensor], saved: Saved, group: dist.ProcessGroup | None) -> None:
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    reader = dcp.HuggingFaceStorageReader(str(saved.path))
    if group:
        with _plain_errors():
            dcp.load(tensors, storage_reader=reader, planner=planner, process_group=group)
        return
    metadata = reader.read_metadata()
    planner.set_up_planner(tensors, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    plans = planner.create_global_plan([reader.prepare_local_plan(planner.create_local_plan())])
    (plan,) = reader.prepare_global_plan(plans)
    reader.read_data(planner.finish_plan(plan), planner).wait()


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """The error itself, of the lowest rank that has one, instead of torch's collection of them."""
    try:
        yield
    except CheckpointException as error:
        raise error.failures[min(error.failures)][0] from error
