"""A child process that ends when its parent does.

The child's standard input is a pipe that nobody writes to. It closes when the parent dies, whatever the cause.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal this process is sent when the thread that started it has ended."""


def environment() -> dict[str, str]:
    """The environment of a child: this process's own, and where it finds its modules."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def exit_with_parent() -> None:
    """Wait until standard input closes, then end this process and, where it leads a process group, the whole group."""
    if sys.platform == "linux":  # a process that somebody has stopped can end by itself only when it is continued
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
    # Not sys.stdin: at exit its lock would be held by this thread. Nothing is ever written, so this waits for the end.
    os.read(0, 1)
    if os.getpgid(0) == os.getpid():
        kill_process_group(os.getpid())
    os._exit(1)


def kill_process_group(leader: int) -> None:
    """Kill every process of the group that ``leader`` leads or led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
