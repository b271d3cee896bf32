from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from robustkd import plugins
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


def forget() -> None:
    """What the registry knows about installed packages is read again."""
    plugins.refresh()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``installed(name, {group: {plug-in: "module:Class"}})``: a distribution that registers these."""

    def install(name: str, points: Mapping[str, Mapping[str, str]]) -> None:
        info = tmp_path / "site" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [
            f"[robustkd.{group}]\n" + "".join(f"{key} = {at}\n" for key, at in uses.items()) for group, uses in points.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        forget()

    yield install
    forget()
