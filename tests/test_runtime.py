"""What the program asks of the machine beneath it."""

import platform
import subprocess
import sys

import pytest

ALLOCATE_REPEATEDLY = """
import resource, sys
import torch
from mengya import runtime

if sys.argv[1] == "keep":
    runtime.keep_freed_memory()
for _ in range(20):  # some versions put the first few side by side
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library's allocator is asked")
def test_freed_memory_is_used_again_without_meeting_its_pages_anew():
    def faults(how):
        command = [sys.executable, "-c", ALLOCATE_REPEATEDLY, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert 8 * faults("keep") < faults("default")
