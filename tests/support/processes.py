"""The processes that work on cells, as Linux shows them."""

import os
from pathlib import Path


def children():
    """Command lines of living children of this process that work on cells."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if int(parent) == os.getpid() and b"engines.child" in words:
            found.append(words)
    return found
