"""What tests of several situations share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from robustkd.cli import main


@pytest.fixture(name="robustkd")
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """``robustkd("run", "c.yaml")`` in the test's own folder: the exit code, and what was written; a traceback fails the test."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robustkd", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(stop.value.code or 0), said.out, said.err

    return call
