"""A process that ends with the one that started it.

Its standard input is a pipe that nobody writes to: it closes when the process at the other end dies, however it dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path


def environment() -> dict[str, str]:
    """The environment of a child: this process's own, and where it finds its modules."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def die_with_parent() -> None:
    """Wait for the lifeline to close, then end this process and those that it has started: it leads a group of its own."""
    # Not sys.stdin: at exit its lock would be held by this thread. Nothing is ever written, so this waits for the end.
    os.read(0, 1)
    if os.getpgid(0) == os.getpid():
        end_group(os.getpid())
    os._exit(1)


def end_group(leader: int) -> None:
    """Kill every process of the group that ``leader`` leads or led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
