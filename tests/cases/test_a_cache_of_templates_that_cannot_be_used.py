"""The report's templates are kept compiled in the user's cache: where it cannot be used, the report is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import robustkd
from support.campaigns import tiny_campaign

CAMPAIGN = tiny_campaign("small", train=20, test=10)


def report(folder: Path, cache: Path) -> str:
    """The page of the campaign in ``folder``, written in a process of its own."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    argv = [sys.executable, "-m", "robustkd", "report", "c.yaml", "--out", "out"]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (folder / "out" / "report.html").read_text()


@pytest.mark.slow
def test_a_cache_that_is_there_is_no_folder_or_is_damaged_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CAMPAIGN)
    robustkd.run(tmp_path / "c.yaml", tmp_path / "out", workers=0, device="cpu", track=False)
    cache = tmp_path / "cache"
    page = report(tmp_path, cache)
    kept = list((cache / "robustkd" / "templates").iterdir())
    assert "fgsm" in page
    assert len(kept) > 5
    assert report(tmp_path, cache) == page
    for file in kept:
        file.write_bytes(file.read_bytes()[:-20])
    assert report(tmp_path, cache) == page
    (tmp_path / "file").touch()
    assert report(tmp_path, tmp_path / "file") == page
