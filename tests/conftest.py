from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from robustkd import plugins
from support.packages import write_metadata

collect_ignore = ["plugin_example"]  # a package of its own, whose tests need it installed: tests/plugin_kit does both

torch.set_num_threads(1)  # the tests' networks are too small to gain from more, and xdist fills the cores


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test or its fixtures draw from torch's own generator must not depend on which tests came before."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """The same again: a fixture of the module was made for this test or for an earlier one."""
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how to get the same order again; pytest-randomly does so in the header, which ``-q`` leaves out."""
    seed = config.getoption("randomly_seed", None)
    if seed is not None and config.getoption("randomly_reorganize", True):
        terminalreporter.write_line(f"the order of the tests: --randomly-seed={seed}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The measuring data's folder; tests that use it are marked ``shared_data`` and skipped without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ROBUSTKD_SHARED_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"no measuring data in {folder}")
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``installed(name, {group: {plug-in: "module:Class"}})``: a package that registers these until the test ends."""

    def install(name: str, points: Mapping[str, Mapping[str, str]], version: str = "1.0") -> None:
        write_metadata(tmp_path / "site", name, points, version)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        plugins.refresh()

    yield install
    plugins.refresh()
