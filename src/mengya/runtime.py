"""The machine: device, number types, compiler, peak speed, memory, signals."""

import contextlib
import ctypes
import gc
import platform
import resource
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from mengya import processor


def pick_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(name: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it faster than float32, else that."""
    if name == "auto":
        name = "bfloat16" if is_bfloat16_faster(device) else "float32"
    return getattr(torch, name)


def is_bfloat16_faster(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 faster than float32.

    It does not where that is emulated (a T4 or a V100, a CPU with AVX2 alone), nor on an Intel CPU whose AMX is missing
    or hidden from a virtual machine: its AVX-512 multiplies bfloat16 at half the speed (docs/LOG.md).
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() and (processor.has_amx() or not processor.is_intel())


def compiler_missing(device: str) -> str | None:
    """Why torch.compile cannot work here; None if it can."""
    if device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "no C++ compiler found; install g++ to train faster"
    if device == "cpu" and not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers are missing; install them (python3-dev) to train faster"
    return None


def compiler_failure(error: Exception) -> str | None:
    """What torch.compile's compiler said when it broke, in one line; None if the error is another one."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError

    if not isinstance(error, TorchDynamoException | CppCompileError):
        return None
    said = str(error).partition("Output:")[2] or str(error)
    return next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)


def describe_machine() -> str:
    """One line for manifests and reports: no host name, no path."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor.name()
    device = device or platform.processor() or platform.machine()
    return f"{device}, {torch.get_num_threads()} threads, {platform.system()}, Python {platform.python_version()}"


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_flops(dtype: torch.dtype, device: str) -> float:
    """Operations per second of the best of a few square matrix products: the roof that utilisation is a share of."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        synchronize(device)
        begin = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


class PeakMemory:
    """The most memory that this process has held since this was made, in bytes; what came before does not count."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)  # what was freed before and kept: see keep_freed_memory
        self._before = 0
        try:  # Linux: the peak begins anew at what is held now
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            self._before = _most_held()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def host(self) -> int | None:
        """Resident memory, interpreter and libraries included. None where it is not known: on a system whose peak
        cannot begin anew, if more was held before."""
        found = _most_held()
        return found if found > self._before else None

    def device(self) -> int | None:
        """Of the tensors on the GPU; None without one."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def _most_held() -> int:
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def free_memory(device: str) -> int | None:
    """Bytes that a process may still take; None where that is not known."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def keep_freed_memory() -> None:
    """Have the GNU C library keep blocks of up to 32 MB that are freed for its next allocation; elsewhere, do nothing.

    They otherwise go back to the system, which gives every training step the same memory again, page by page. Larger
    blocks still do: 32 MB is the library's maximum, and keeping all of them costs a tenth more memory.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of malloc.h
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, -1)
        mallopt(top_pad, 64 << 20)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C or SIGTERM only sets a flag, read by the yielded function; a second one acts at once."""
    interrupted = False

    def note(number, frame) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True

    before = {}
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
