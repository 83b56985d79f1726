"""torch.compile, imported only where something is compiled: its import takes two seconds, which no chat should wait."""

import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

P = ParamSpec("P")
R = TypeVar("R")

_decisions: list[Callable[..., Any]] = []


def decision(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function of types and sizes that compiled code asks once, when it is compiled, and never looks into."""
    _decisions.append(function)
    return function


def compiled(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """`torch.compile(function, **options)`, which knows the decisions, with a cache for each instruction set.

    torch 2.13 takes what it compiled for AVX-512 from its cache where there is AVX2 alone (a machine that was moved, a
    shared folder, ATEN_CPU_CAPABILITY), and the other way round, and then writes behind the end of tensors.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    default = default_cache_dir()
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default) == default:  # torch itself sets it
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{default}-{torch.backends.cpu.get_cpu_capability()}"
    for each in _decisions:
        torch.compiler.assume_constant_result(each)
    return torch.compile(function, **options)


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, which compiled code computes once more in its backward pass, in place of keeping it.

    For what is cheap and large, of float32 on a CPU: computing it takes no longer there than reading it from memory.
    """
    if not torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(*inputs)
    if any(x.device.type != "cpu" or x.dtype != torch.float32 for x in inputs):
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
