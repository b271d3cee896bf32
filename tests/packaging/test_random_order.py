"""The suite runs in random order and says in which; a test that hangs fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
DRAWN: list[float] = []


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["-n", "1"]])
def test_the_seed_is_told_although_the_suite_is_quiet(more: list[str]) -> None:
    line = [
        sys.executable,
        "-m",
        "pytest",
        "tests/packaging/test_random_order.py",
        "-k",
        "generator",
        "--randomly-seed=7",
        *more,
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "the order of the tests: --randomly-seed=7" in done.stdout


def test_there_is_a_limit_for_a_test_that_hangs(pytestconfig: pytest.Config) -> None:
    assert float(pytestconfig.getini("timeout")) == 600


@pytest.mark.parametrize("number", range(2))
def test_torchs_generator_is_seeded_for_each_test(number: int) -> None:
    DRAWN.append(float(torch.rand(())))
    assert DRAWN[0] == DRAWN[-1]
