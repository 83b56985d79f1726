"""The processes ("ranks") of one run, as torchrun starts them; without torchrun this process is rank 0 of 1.

Everything here also works without a process group. Messages of the user interface are printed by rank 0 alone.
"""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from mengya.errors import UserError

T = TypeVar("T")
_TIMEOUT = timedelta(days=365)
"""Ranks wait for rank 0 through stages that only it runs, however long; torchrun ends them all when one dies."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")


class _Followed(SystemExit):
    """This rank ends because rank 0 did, which says why."""


def launched() -> bool:
    """Whether torchrun (or another launcher that sets its variables) has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


@contextlib.contextmanager
def group() -> Iterator[None]:
    """Join the ranks for the duration; nothing without a launcher.

    Ranks other than 0 print nothing. An error that ends the run is raised on the first rank that meets it; the others
    exit silently, because their errors only follow from it.
    """
    if not launched():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    store, number, count = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # On one node torchrun uses a store again after a restart, with the addresses of the dead processes in it. Over
        # several nodes (--rdzv-backend c10d) each round has its own, and nodes may count restarts differently.
        store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=_TIMEOUT)
    with contextlib.nullcontext() if is_main() else contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        except BaseException as error:
            if isinstance(error, _Followed) or not _first_to_fail(store):
                time.sleep(20)  # when this rank ends, torchrun ends all of them: let the first one say why
                sys.stderr.flush()
                os._exit(_exit_code(error))  # without taking down threads that wait for ranks that are gone
            if isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST):
                again = (
                    "give the same command again, or start it with torchrun --max-restarts 3, which does so by itself"
                )
                if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > int(os.environ["TORCHELASTIC_RESTART_COUNT"]):
                    again = "torchrun starts all of them again"
                raise UserError(f"another process of this run was killed or has crashed; {again}") from error
            raise
    dist.destroy_process_group()


def _first_to_fail(store: dist.Store) -> bool:
    with _silent_stderr():  # torch itself writes there that the store is gone, with a C++ stack
        try:
            return store.add("mengya/failures", 1) == 1
        except RuntimeError:  # the process that held the store has ended
            return False


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    sys.stderr.flush()
    shown = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return {UserError: 2, KeyboardInterrupt: 130}.get(type(error), 1)


def barrier() -> None:
    on_main(lambda: None)


def on_main(work: Callable[[], T]) -> T:
    """What `work()` gives on rank 0, on every rank (it must pickle). If it raises there, the other ranks exit."""
    if size() == 1:
        return work()
    answer: list = [None, None]
    try:
        if is_main():
            answer[0] = work()
    except BaseException as error:
        answer[1] = _exit_code(error)
        raise
    finally:
        # The device names the backend: gloo, on which waiting has no limit and blocks no accelerator.
        dist.broadcast_object_list(answer, 0, device=torch.device("cpu"))
    if answer[1] is not None:
        raise _Followed(answer[1])
    return answer[0]


def sum_of(*values: int) -> list[int]:
    """The sums over all ranks."""
    if size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(total)
    return total.tolist()


def most_of(value: int | None) -> int | None:
    """The largest of all ranks; None if it is on none of them."""
    if size() == 1:
        return value
    most = torch.tensor(-1 if value is None else value, dtype=torch.int64)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return None if most < 0 else int(most)


def any_of(value: bool) -> bool:
    """Whether it is true on some rank; the same answer on every rank."""
    return sum_of(int(value))[0] > 0


def sum_in_place(tensor: Tensor) -> Tensor:
    """Add up a tensor over all ranks, wherever it lies."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor
