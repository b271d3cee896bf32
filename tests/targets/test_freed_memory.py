"""Memory that a pass frees stays in the process: else the next pass takes every page from the system anew."""

import platform
import subprocess
import sys

import pytest

# In a process of its own: what another test has left on the heap decides whether glibc gives memory back.
PASSES = """
import resource
import numpy as np
from robustkd.targets.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        blocks = [np.ones(1 << 18) for _ in range(5)]  # 2 MiB each, freed after each pass
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

np.ones(1 << 22)  # glibc's own threshold grows with the largest block that was freed
anew = faults()
keep_freed_memory()
faults()
print(anew, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of glibc")
def test_what_a_pass_frees_is_used_again_by_the_next():
    done = subprocess.run([sys.executable, "-c", PASSES], capture_output=True, text=True, check=True)
    anew, again = map(int, done.stdout.split())
    assert anew > 1000
    assert again < anew / 10
