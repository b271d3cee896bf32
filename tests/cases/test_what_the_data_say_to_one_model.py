"""What data have to say of themselves, which a campaign prints above its numbers, is also said where one model is attacked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.command_line import CommandLine


@pytest.mark.parametrize("command", [("attack", "fgsm", "--model", "net.py:build"), ("audit", "net.py:build")])
def test_folders_that_are_called_by_numbers(robustkd: CommandLine, command: tuple[str, ...]) -> None:
    for number in range(12):
        folder = Path("images", "test", str(number))
        folder.mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 20 * number, np.uint8)).save(folder / "0.png")
    Path("net.py").write_text(
        "import torch\n\n\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12))\n"
    )
    said = robustkd(
        *command, "--data", "image-folder", "--data-set", "root=images", "--data-set", "channels=1",
        "--n", 12, "--eps", 0.1, "--json",
    )  # fmt: skip
    assert said.code in (0, 4), said.err
    assert (
        "data: the folders are called by numbers and are classes in the order of the alphabet, so '10' is class 2" in said.err
    )
    json.loads(said.out)
