"""The accelerators of this machine, told without importing torch where there can be none."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import entry_points
from pathlib import Path

_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg", "/dev/dri")
"""What a driver that torch can use shows of itself on Linux: NVIDIA's, that of its Jetsons, AMD's, WSL's, and Intel's."""


def accelerators() -> list[str]:
    """The names of the accelerators that torch can use, in its order."""
    if "torch" not in sys.modules and not _may_have_one():
        return []
    from robustkd.contracts.devices import devices  # late: torch takes 1.6 s and 290 MiB

    return [what for name, what in devices().items() if name != "cpu"]


def _may_have_one() -> bool:
    if entry_points(group="torch.backends"):  # of other makers
        return True
    if sys.platform == "linux":
        return any(Path(driver).exists() for driver in _DRIVERS)
    return sys.platform != "darwin" or platform.machine() == "arm64"
