"""A device that is not there, memory that runs out on devices that say so in words, and a system without POSIX locks."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import robustkd
from robustkd.contracts import UsageError
from robustkd.contracts.devices import device_named, devices, move


@pytest.mark.parametrize("name", ["nonsense", "gpu:0", "meta", "hpu"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        device_named(name)
    assert f"device '{name}' cannot be used here" in caught.value.message
    assert str(caught.value.fix).startswith(f"use one that is here: auto, {', '.join(devices())}")


@pytest.mark.parametrize(
    "said",
    [
        "MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.00 GB, max allowed: 18.13 GB)",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "CUDA error: out of memory",
    ],
)
def test_memory_that_runs_out_on_any_device_halves_the_batch(said: str) -> None:
    class Crowded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 2:
                raise RuntimeError(said)
            return torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1)

    x, y = torch.rand(5, 1, 4, 4), torch.zeros(5, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        report = robustkd.evaluate(Crowded(), x, y, attacks="fgsm", eps=0.01, level="none")
    assert report.clean_accuracy == 1.0


def test_weights_that_are_shared_stay_shared_where_torch_makes_new_parameters() -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # as every backend does that registered itself
    try:
        move(tied, "cpu")
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    assert tied[0].weight is tied[1].weight


def test_where_campaigns_cannot_run_one_sentence_says_so_and_the_functions_work() -> None:
    """Faked by the import of ``fcntl`` and ``resource`` failing, as on Windows."""
    script = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None
import torch, robustkd
from robustkd.cli import main
robustkd.attack("fgsm", torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), torch.rand(1, 1, 2, 2), torch.tensor([0]))
sys.argv = ["robustkd", "run", "quickstart"]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: campaigns do not run on Windows itself")
    assert "WSL 2" in done.stderr
    assert "Traceback" not in done.stderr
