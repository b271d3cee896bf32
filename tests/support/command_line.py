"""The command, called in the test's own process."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from robustkd.cli import main


class Said(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """All of it, without the ends of lines, which depend on how wide the terminal is."""
        return " ".join((self.out + self.err).split())


class CommandLine:
    """``robustkd("run", "c.yaml")``: the exit code, standard output and standard error; a traceback fails the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Said:
        self._monkeypatch.setattr("sys.argv", ["robustkd", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Said(int(ended.value.code or 0), captured.out, captured.err)
