"""The device ``second``: torch's module for it, and its registration, which torch itself calls in every process that sees it.

A folder that ``second_device.build`` fills is on the PYTHONPATH of the processes that shall have the device: it holds the
compiled extension, and the metadata by which ``import torch`` finds ``register`` (the entry points ``torch.backends``).
"""

from __future__ import annotations

import importlib

import torch
from torch.utils.backend_registration import _DummyBackendModule

native = importlib.import_module("second_device_native")


class SecondModule(_DummyBackendModule):
    """``torch.second``: what torch asks of a device's module beyond the number of devices, which is one."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = 0) -> torch.Tensor:
        return native.default_generator().get_state()

    def set_rng_state(self, state: torch.Tensor, device: object = 0) -> None:
        native.default_generator().set_state(state)

    def manual_seed_all(self, seed: int) -> None:
        native.default_generator().manual_seed(seed)

    def synchronize(self, device: object = None) -> None:
        """Nothing is ever under way."""


def register() -> None:
    """Give torch the device. Torch calls it at the end of its own import."""
    torch.utils.rename_privateuse1_backend("second")
    torch._register_device_module("second", SecondModule())
    torch.utils.generate_methods_for_privateuse1_backend(for_module=False, for_storage=True)
