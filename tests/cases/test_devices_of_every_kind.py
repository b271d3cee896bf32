"""A device that is not there, memory that runs out on devices that say so in words, and a system without POSIX locks."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import robustkd as platform
from robustkd.contracts import UsageError
from robustkd.contracts.devices import device_named, devices, move
from support.campaigns import tiny_campaign
from support.command_line import CommandLine


@pytest.mark.parametrize("name", ["nonsense", "gpu:0", "meta", "hpu"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        device_named(name)
    assert f"device '{name}' cannot be used here" in caught.value.message
    assert str(caught.value.fix).startswith(f"use one that is here: auto, {', '.join(devices())}")


@pytest.mark.parametrize("device", ["gpu", "cuda:7", "cpu,gpu"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_a_device_that_is_not_there_ends_before_it_begins(
    robustkd: CommandLine, tmp_path: Path, device: str, workers: int
) -> None:
    """And does not fail cell by cell, each with the same sentence."""
    (tmp_path / "tiny.yaml").write_text(tiny_campaign())
    said = robustkd("run", "tiny.yaml", "--workers", workers, "--device", device)
    assert said.code == 2
    assert f"device '{device.removeprefix('cpu,')}' cannot be used here" in said.words
    assert f"use one that is here: auto, {', '.join(devices())}" in said.words
    assert not list(tmp_path.glob("runs/*"))


def test_so_does_one_whose_profile_or_caller_names_it(robustkd: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_campaign())
    (tmp_path / "profile.yaml").write_text("devices: [gpu]\nengine: {kind: inline}\n")
    said = robustkd("run", "tiny.yaml", "--profile", "profile.yaml")
    assert (said.code, "device 'gpu' cannot be used here" in said.words) == (2, True)
    with pytest.raises(UsageError, match="device 'gpu' cannot be used here"):
        platform.run("tiny.yaml", device="gpu")
    assert not list(tmp_path.glob("runs/*"))


def test_what_is_finished_is_shown_whatever_the_profile_names(robustkd: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_campaign())
    here = ("--workers", 0, "--no-track", "--quiet")
    assert robustkd("run", "tiny.yaml", *here, "--device", "cpu").code == 0
    elsewhere = robustkd("run", "tiny.yaml", *here, "--device", "gpu")
    assert elsewhere.code == 0, elsewhere.words
    assert robustkd("run", "tiny.yaml", *here, "--device", "gpu", "--redo", "fgsm").code == 2


@pytest.mark.parametrize("command", [("attack", "fgsm", "--model"), ("audit",)])
def test_one_model_on_a_device_that_is_not_there(robustkd: CommandLine, command: tuple[str, ...]) -> None:
    said = robustkd(*command, "nowhere.py:build", "--data", "digits", "--device", "gpu")
    assert (said.code, "device 'gpu' cannot be used here" in said.words) == (2, True)


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
        report = platform.evaluate(Crowded(), x, y, attacks="fgsm", eps=0.01, level="none")
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
