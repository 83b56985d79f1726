"""What the program asks of the machine beneath it."""

import platform
import subprocess
import sys

import pytest

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
