"""What the system says of the processor, on Linux; elsewhere nothing is known of it."""

import functools
from pathlib import Path

_AMX = {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_tile", "amx_bf16"}


@functools.cache
def _said() -> dict[str, str]:
    """Of the first processor; the others are the same."""
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def name() -> str | None:
    return _said().get("model name")


def features() -> set[str]:
    """Its instruction sets, by Linux's names."""
    said = _said()
    return set((said.get("flags") or said.get("Features", "")).split())


def is_intel() -> bool:
    """Whether it is of the maker of MKL, the library by which PyTorch multiplies float32."""
    return _said().get("vendor_id") == "GenuineIntel"


def has_amx() -> bool:
    """Whether processor and system have AMX tiles of bfloat16, and AVX-512 beside them."""
    return features() >= _AMX
