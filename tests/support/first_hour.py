"""What the tests of a user's first hour share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from robustkd.cli import main


def build_network(code: str) -> nn.Module:
    """What ``build()`` of a user's file makes for images (1, 8, 8), with running statistics of its own."""
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    torch.manual_seed(1)
    net: nn.Module = namespace["build"]()
    net(torch.rand(16, 1, 8, 8))
    return net.eval()


def robust_accuracy_of(command: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> float:
    """What ``robustkd attack .. --json`` says."""
    monkeypatch.setattr("sys.argv", list(command))
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    return float(json.loads(capsys.readouterr().out)["robust_accuracy"])
