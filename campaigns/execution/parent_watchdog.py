"""A child process that ends when its parent does.

The child's standard input is a pipe that nobody writes to. It closes when the parent dies, whatever the cause.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

# Linux's prctl(PR_SET_PDEATHSIG): a child that somebody has stopped (SIGSTOP) is continued when the thread that started it ends, for it
# can end by itself only while it runs. Before anything else, since importing takes seconds.
_CONTINUED = "import sys, ctypes; sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, {signal:d})"


def command(module: str) -> list[str]:
    """The beginning of the command line of a child that runs ``main`` of ``module``; arguments may follow."""
    code = f"{_CONTINUED.format(signal=signal.SIGCONT)}; from {module} import main; main()"
    return [sys.executable, "-P", "-c", code]


def environment() -> dict[str, str]:
    """The environment of a child: this process's own, and where it finds its modules."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def exit_with_parent() -> None:
    """Wait until standard input closes, then end this process and, where it leads a process group, the whole group."""
    # Not sys.stdin: at exit its lock would be held by this thread. Nothing is ever written, so this waits for the end.
    os.read(0, 1)
    exit_with_group()


def exit_with_group() -> NoReturn:
    """End this process and, where it leads a process group, whatever it has started: nobody else would when the parent is dead."""
    if os.getpgid(0) == os.getpid():
        kill_process_group(os.getpid())
    os._exit(1)


def kill_process_group(leader: int) -> None:
    """Kill every process of the group that ``leader`` leads or led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
