"""The devices that torch can use here: the CPU, and one or more of a kind of accelerator.

CUDA, Apple's MPS, Intel's XPU and the backends of other makers, which register themselves with torch, are asked in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from robustkd.contracts.errors import UsageError
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import nn


def accelerator() -> torch.device | None:
    """The kind of accelerator that is there, a device without an index; None where there is the CPU alone."""
    return torch.accelerator.current_accelerator(check_available=True)


def devices() -> dict[str, str]:
    """The names that a device may be asked for by (``cuda:0``, ``cpu``), and what each is."""
    found: dict[str, str] = {}
    if (kind := accelerator()) is not None:
        named = getattr(torch.get_device_module(kind), "get_device_name", None)
        for index in range(torch.accelerator.device_count()):
            usual = "Apple GPU" if kind.type == "mps" else kind.type
            found[f"{kind.type}:{index}"] = str(named(index)) if named is not None else usual
    return {**found, "cpu": f"CPU with {torch.get_num_threads()} threads"}


def device_named(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the accelerator where there is one, else the CPU.

    Raises:
        UsageError: there is no such device on this machine.
    """
    if name == "auto":
        return accelerator() or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        there = device.type == "cpu" or f"{device.type}:{device.index or 0}" in devices()
        said = ""
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
        ImportError,
    ) as error:  # torch built without the backend raises any
        there, said = False, (str(error).splitlines() or [""])[0].partition(". ")[0]
    if not there:
        raise unusable(name, devices(), "torch knows no such device" if said.startswith("Expected one of") else said)
    return device


def unusable(name: str, here: Iterable[str], reason: str = "") -> UsageError:
    """The error of a device that is not one of those that are here."""
    wanted = "; a graphics card of NVIDIA or AMD is called cuda" if name.casefold().startswith("gpu") else ""
    fix = f"use one that is here: auto, {', '.join(here)}{wanted}"
    return UsageError(f"device '{name}' cannot be used here{': ' if reason else ''}{reason}", fix=fix)


def move(module: nn.Module, device: torch.device | str) -> None:
    """Bring a module to a device in place; weights that several of its parts share stay shared.

    Torch keeps parameters' identity on the way to CUDA and the like, and makes new ones for a backend that registered itself.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    module.to(device)
    for first, *others in names.values():
        shared = module.get_parameter(first) if others else None
        for name in others:
            parent, _, leaf = name.rpartition(".")
            if module.get_parameter(name) is not shared:
                setattr(module.get_submodule(parent), leaf, shared)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on the device; None of the CPU, and where the backend does not say."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        return int(module.mem_get_info(device)[0])
    if hasattr(module, "recommended_max_memory"):  # Apple's
        return int(module.recommended_max_memory() - module.driver_allocated_memory())
    return None


def empty_cache() -> None:
    """Give memory back that torch keeps of the accelerator for later tensors."""
    kind = accelerator()
    if kind is not None and hasattr(module := torch.get_device_module(kind), "empty_cache"):
        module.empty_cache()
