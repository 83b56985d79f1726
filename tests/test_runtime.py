"""What the program asks of the machine beneath it."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mengya import processor, runtime

ALLOCATE_TWICE = """
import resource, sys
import torch
from mengya import processor, runtime

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


PEAKS = """
import torch
from mengya import processor, runtime

runtime.keep_freed_memory()
blocks = [torch.ones(4 << 20, dtype=torch.uint8) for _ in range(100)]
del blocks
peak = runtime.PeakMemory()
before = peak.host()
block = torch.ones(100 << 20, dtype=torch.uint8)
del block
print(before, peak.host(), peak.device())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process begin its peak anew")
def test_the_peak_of_memory_is_that_of_what_is_measured():
    """400 MB before it do not count, although the allocator has kept them."""
    found = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True).stdout
    before, peak, device = found.split()
    assert 95 << 20 < int(peak) - int(before) < 130 << 20
    assert device == "None"


def test_a_peak_that_came_before_is_not_taken_for_one_of_the_stage(monkeypatch):
    """Where the peak of a process cannot begin anew, as on macOS."""

    def refuse(self, *rest, **named):
        raise OSError

    monkeypatch.setattr(runtime.Path, "write_text", refuse)
    held = iter([100, 100, 150])
    monkeypatch.setattr(runtime, "_most_held", lambda: next(held))
    peak = runtime.PeakMemory()
    assert (peak.host(), peak.host()) == (None, 150)


def test_auto_is_float32_on_an_intel_processor_without_amx(monkeypatch):
    """A virtual machine may hide it; AVX-512 alone multiplies bfloat16 at half the speed of float32 there."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for intel, amx, faster in ((True, False, False), (True, True, True), (False, False, True)):
        monkeypatch.setattr(processor, "is_intel", lambda intel=intel: intel)
        monkeypatch.setattr(processor, "has_amx", lambda amx=amx: amx)
        assert runtime.is_bfloat16_faster("cpu") is faster


def test_what_the_system_says_of_the_processor(monkeypatch):
    lines = ["processor\t: 0", "model name\t: A: B", "flags\t\t: fpu avx2", "", "processor\t: 1", "flags\t: other", ""]
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: "\n".join(lines))
    monkeypatch.setattr(processor, "_said", processor._said.__wrapped__)
    assert (processor.name(), processor.features(), processor.is_intel()) == ("A: B", {"fpu", "avx2"}, False)

    def missing(path, encoding):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert (processor.name(), processor.features(), processor.has_amx()) == (None, set(), False)


@pytest.mark.parametrize("computed", [True, False])
def test_auto_is_bfloat16_where_the_hardware_computes_it(monkeypatch, computed):
    """Emulated, as on a V100, it is slower than float32."""

    def supported(including_emulation=True):
        return computed or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: computed)
    monkeypatch.setattr(processor, "is_intel", lambda: False)
    for device in ("cuda", "cpu"):
        assert runtime.pick_dtype("auto", device) == (torch.bfloat16 if computed else torch.float32)
        assert runtime.pick_dtype("bfloat16", device) == torch.bfloat16


def test_what_torch_keeps_private_is_there():
    """Used in runtime.py; another version of torch may rename it."""
    assert torch.cpu._is_avx512_bf16_supported() in (True, False)
