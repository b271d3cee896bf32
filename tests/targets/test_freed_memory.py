"""Memory that a pass frees stays in the process: else the next pass takes every page from the system anew."""

from __future__ import annotations

import platform
import resource
from collections.abc import Iterator

import numpy as np
import pytest

from robustkd.targets import memory


@pytest.fixture
def allocator() -> Iterator[None]:
    """Put back afterwards to where glibc comes by itself in a process that has freed a block of 32 MiB."""
    yield
    memory._set_allocator({memory._M_MMAP_THRESHOLD: 32 << 20, memory._M_TRIM_THRESHOLD: 64 << 20})


def faults_of_passes(passes: int) -> int:
    """How many pages are taken from the system for blocks of 2 MiB, five at a time, which are freed after each pass."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(passes):
        blocks = [np.ones(1 << 18) for _ in range(5)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of glibc")
def test_what_a_pass_frees_is_used_again_by_the_next(allocator: None) -> None:
    memory._set_allocator({memory._M_MMAP_THRESHOLD: 32 << 20, memory._M_TRIM_THRESHOLD: 2 << 20})
    anew = faults_of_passes(4)
    memory.keep_freed_memory()
    faults_of_passes(1)
    assert anew > 2000
    assert faults_of_passes(4) < anew / 10
