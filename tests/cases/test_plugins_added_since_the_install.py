"""A checkout whose plug-ins have changed since it was installed: without a word, a campaign would lack the new ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustkd.cli import cli
from robustkd.integrations import checkout, doctor


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the checks in a copy of ``entry_points/`` that is looked at in its place."""
    shutil.copytree(Path(checkout.__file__).parents[2] / "entry_points", tmp_path / "entry_points")
    monkeypatch.setattr(checkout, "_FOLDER", tmp_path / "entry_points")
    return tmp_path / "entry_points" / "checks.ini"


def test_an_installation_that_is_up_to_date_is_not_spoken_of(listed: Path) -> None:
    assert checkout.stale_install() is None
    assert CliRunner().invoke(cli, ["list", "checks"]).stderr == ""
    assert doctor._plugins().ok


def test_plugins_that_were_added_or_renamed_are_named_with_the_fix(listed: Path) -> None:
    listed.write_text(listed.read_text().replace("noise-beats-attack =", "noise-beats-attacks =") + "new-check = a.b:C\n")
    told = CliRunner().invoke(cli, ["list", "checks"]).stderr
    assert told.startswith("warning: the installation lacks new-check, noise-beats-attacks and still has noise-beats-attack")
    assert "make install" in told
    assert len(told.splitlines()) == 1
    found = doctor._plugins()
    assert not found.ok
    assert "new-check" in found.detail
    assert "make install" in found.fix


def test_a_wheel_has_no_list_to_compare_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "_FOLDER", tmp_path / "site-packages" / "entry_points")
    assert checkout.stale_install() is None
