"""What tests of several situations share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.command_line import CommandLine


@pytest.fixture(name="robustkd")
def command(robustkd: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CommandLine:
    """The command in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    return robustkd


@pytest.fixture
def say(robustkd: CommandLine) -> Callable[..., tuple[int, str]]:
    """The same: the exit code, and all that was said."""

    def call(*arguments: object) -> tuple[int, str]:
        said = robustkd(*arguments)
        return said.code, said.out + said.err

    return call
