"""What the program asks of the machine beneath it."""

import platform
import subprocess
import sys

import pytest
import torch

from mengya import runtime

ALLOCATE_TWICE = """
import resource, sys
import torch
from mengya import runtime

if sys.argv[1] == "keep":
    runtime.keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(4 << 20, dtype=torch.uint8) for _ in range(100)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library's allocator is asked")
def test_freed_memory_is_used_again_without_meeting_its_pages_anew():
    def faults(how):
        command = [sys.executable, "-c", ALLOCATE_TWICE, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert 4 * faults("keep") < faults("default")


@pytest.mark.parametrize("computed", [True, False])
def test_auto_is_bfloat16_where_the_hardware_computes_it(monkeypatch, computed):
    """Emulated, as on a V100, it is slower than float32."""

    def supported(including_emulation=True):
        return computed or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: computed)
    for device in ("cuda", "cpu"):
        assert runtime.pick_dtype("auto", device) == (torch.bfloat16 if computed else torch.float32)
        assert runtime.pick_dtype("bfloat16", device) == torch.bfloat16


def test_what_torch_keeps_private_is_there():
    """Used in runtime.py; another version of torch may rename it."""
    assert torch.cpu._is_avx512_bf16_supported() in (True, False)
