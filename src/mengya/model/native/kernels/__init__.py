"""Native kernels: compiled on first use with the machine's C++ compiler and cached; torch replaces them elsewhere."""

import atexit
import ctypes
import functools
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import torch  # also loads the OpenMP runtime that the kernels then share

from mengya import processor

_LOG = logging.getLogger(__name__)
# Named one by one instead of -march=native: the cached library then fits every machine that passes `_level`.
_FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fopenmp")
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_DOTS = {"avx512_bf16": "-mavx512bf16", "avx512_vnni": "-mavx512vnni"}
"""Products of pairs, in bf16 and in whole numbers: not every AVX-512 has them."""
_AMX = (*_AVX512, "-mavx512bf16")


VECTOR = ("vector_attention", "avx2_attention", "generation", "float_products")
"""As wide as the processor's vectors; avx2_attention, which is vector_attention.cpp, has 32 bytes anywhere."""


def _level(name: str) -> tuple[str, ...] | None:
    """The compiler's flags for a kernel on this machine; None if it cannot run. ATEN_CPU_CAPABILITY, by which torch is
    told to be content with less, counts for the vector kernels, too."""
    if name not in VECTOR:
        return _AMX if processor.has_amx() else None
    if sys.platform != "linux":
        return None
    capability = torch.backends.cpu.get_cpu_capability()
    if name != "avx2_attention" and capability.startswith("AVX512"):
        return (*_AVX512, *(flag for feature, flag in _DOTS.items() if feature in processor.features()))
    return _AVX2 if capability.startswith("AVX") else None


def build(source: Path, directory: Path, level: tuple[str, ...]) -> Path:
    """Compile `source`, with the flags of `level`, into a shared library in `directory` and return its path.

    A build of the same text with the same flags is used again. The library is written under another name and then
    renamed: processes building at once never see half a file.
    Raises OSError or subprocess.SubprocessError when there is no compiler, it fails, or the directory is not writable.
    """
    compiler = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler (g++, clang++ or c++) on the PATH")
    texts = [path.read_text("utf-8") for path in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.sha256("\0".join((*texts, compiler, *_FLAGS, *level)).encode()).hexdigest()[:16]
    target = directory / f"{source.stem}-{key}.so"
    if is_ours(target):
        return target
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        built = Path(scratch) / target.name
        subprocess.run(
            [compiler, *_FLAGS, *level, str(source), "-o", str(built)],
            check=True, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        built.chmod(0o700)
        os.replace(built, target)
    return target


def is_ours(path: Path) -> bool:
    """Whether a file or a folder is there that nobody but this user may have written: a library runs as this user."""
    try:
        status = path.lstat()  # a link is neither a file nor a folder
    except OSError:
        return False
    plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return plain and status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def private_folder(cache: Path) -> Path:
    """`cache`, made for this user alone; if it belongs to another, a new folder for this process.

    OSError if neither can be made.
    """
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if cache.stat().st_uid == os.getuid() and not cache.is_symlink():
        cache.chmod(0o700)
    if is_ours(cache):
        return cache
    _LOG.warning("%s belongs to another user; kernels are built anew for this process", cache)
    folder = tempfile.TemporaryDirectory(prefix="mengya-kernels-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@functools.cache
def _folder() -> Path:
    return private_folder(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mengya" / "kernels")


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """A kernel's library, built if need be; None where it cannot run, with one logged warning if a build failed.

    `name`: "attention", "weight_gradient", "products" (all for AMX) or one of `VECTOR`. Each function that computes
    takes a pointer to its `struct Problem`.
    """
    level = _level(name)
    if level is None:
        return None
    try:
        source = "vector_attention" if name == "avx2_attention" else name
        found = ctypes.CDLL(str(build(Path(__file__).with_name(f"{source}.cpp"), _folder(), level)))
        if found.init() != 0:
            raise OSError("the system does not grant tile registers")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home directory
        detail = getattr(error, "stderr", None) or str(error)
        _LOG.warning(
            "The fast %s kernel could not be built; using PyTorch's, which is slower: %s", name, detail.strip()
        )
        return None
    return found


def call(name: str, function: str, problem: ctypes.Structure) -> None:
    """Call a function of a library that is there."""
    found = library(name)
    assert found is not None, "called without asking whether the kernel can run"
    getattr(found, function)(ctypes.byref(problem))


class AttentionProblem(ctypes.Structure):
    """`struct Problem` of attention_problem.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "time", "heads", "kv_heads", "head_dim", "threads")),
        *((name, ctypes.c_int64) for name in ("rope_row", "wide")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("starts", "cos", "sin", "lse", "qkv", "out", "grad_out", "grad_qkv")),
    )


class Factor(ctypes.Structure):
    """`struct Factor` of weight_gradient.cpp."""

    _fields_ = (("p", ctypes.c_void_p), ("stride", ctypes.c_int64), ("size", ctypes.c_int64))

    @classmethod
    def of(cls, x: torch.Tensor) -> "Factor":
        """A (tokens, size) tensor whose last dimension is contiguous."""
        return cls(x.data_ptr(), x.stride(0), x.shape[1])


class WeightGradientProblem(ctypes.Structure):
    """`struct Problem` of weight_gradient.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "groups", "parts", "threads")),
        ("ends", ctypes.c_void_p),
        ("x", Factor),
        ("grad_y", Factor * 3),
        ("grad_weight", ctypes.c_void_p * 3),
    )


class ProductsProblem(ctypes.Structure):
    """`struct Problem` of products.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("groups", "inner", "outer", "threads", "transposed", "wide_weights")),
        ("group_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("ends", "rows", "weight", "up_weight", "to", "scale")),
        *((name, ctypes.c_void_p) for name in ("gate_up", "h", "grad_gate_up", "grad_scale")),
    )


class Side(ctypes.Structure):
    """`struct Side` of float_products.cpp."""

    _fields_ = (("p", ctypes.c_void_p), ("row", ctypes.c_int64), ("column", ctypes.c_int64))

    @classmethod
    def of(cls, x: torch.Tensor) -> "Side":
        return cls(x.data_ptr(), *x.stride())


class FloatProblem(ctypes.Structure):
    """`struct Problem` of float_products.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "columns", "depth", "threads", "symmetric")),
        *((name, Side) for name in ("a", "b")),
        ("c", ctypes.c_void_p),
        ("c_row", ctypes.c_int64),
        *((name, ctypes.c_float) for name in ("alpha", "beta")),
        *((name, ctypes.c_void_p) for name in ("gate_up", "h")),
    )


class Matrix(ctypes.Structure):
    """`struct Matrix` of generation.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "bias")),
        *((name, ctypes.c_int64) for name in ("outputs", "depth", "kind")),
    )


class Layer(ctypes.Structure):
    """`struct Layer` of generation.cpp."""

    _fields_ = (
        *((name, Matrix) for name in ("qkv", "out", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("before_attention", "before_mlp", "q_norm", "k_norm")),
        *((name, ctypes.c_void_p) for name in ("router", "router_bias", "experts")),
    )


class GenerationProblem(ctypes.Structure):
    """`struct Problem` of generation.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "outputs", "threads", "layers", "size", "heads", "kv_heads")),
        *((name, ctypes.c_int64) for name in ("head_dim", "blocks", "table_size")),
        *((name, ctypes.c_int64) for name in ("experts", "top_k", "normalised", "wide_embedding", "wide_cache")),
        *((name, ctypes.c_float) for name in ("eps", "scale")),
        *((name, ctypes.c_void_p) for name in ("layer", "head", "embedding", "norm", "cos", "sin")),
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "sequence", "tables", "wanted")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "x", "h", "wide", "inner", "logits")),
        *((name, ctypes.c_void_p) for name in ("gathered", "weights", "chosen", "order", "ends", "scores")),
        *((name, ctypes.c_int64) for name in ("wide_row", "inner_row")),
    )
