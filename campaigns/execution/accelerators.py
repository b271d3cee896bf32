"""The devices of this machine, told without importing torch where there can be no accelerator."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import entry_points
from pathlib import Path

from robustkd.contracts import UsageError
from robustkd.contracts.devices import devices, unusable

_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg", "/dev/dri")
"""What a driver that torch can use shows of itself on Linux: NVIDIA's, that of its Jetsons, AMD's, WSL's, and Intel's."""


def accelerators() -> list[str]:
    """The names of the accelerators that torch can use, in its order."""
    return [what for name, what in _devices().items() if name != "cpu"]


def refusal(names: str) -> UsageError | None:
    """Why some devices (``cuda:0,cuda:1``) cannot be used on this machine, which a run is not to find out cell by cell."""
    for name in names.split(","):
        kind, _, index = name.partition(":")
        if kind not in ("auto", "cpu") and f"{kind}:{index or 0}" not in (here := _devices()):
            return unusable(name, here)
    return None


def _devices() -> dict[str, str]:
    """As ``robustkd.contracts.devices.devices``, which imports torch: 1.6 s and 290 MiB."""
    return devices() if "torch" in sys.modules or _may_have_one() else {"cpu": "CPU"}


def _may_have_one() -> bool:
    if entry_points(group="torch.backends"):  # of other makers
        return True
    if sys.platform == "linux":
        return any(Path(driver).exists() for driver in _DRIVERS)
    return sys.platform != "darwin" or platform.machine() == "arm64"
