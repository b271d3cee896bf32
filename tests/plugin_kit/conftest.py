from __future__ import annotations

import sys

import pytest

from robustkd.cli import main


@pytest.fixture
def robustkd(capsys, monkeypatch):
    """Call ``robustkd ARGS``; returns (exit code, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robustkd", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return stop.value.code or 0, captured.out, captured.err

    return call
