"""Pages in Debian's Chromium, driven by the Node scripts beside. Pictures are kept in screenshots/."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SCREENSHOTS = HERE / "screenshots"


@pytest.fixture(scope="session")
def screenshots() -> str:
    """Where pictures are kept, to be looked at."""
    return str(SCREENSHOTS)


@pytest.fixture(scope="session")
def node() -> Callable[..., Any]:
    """Runs one of the scripts and returns the JSON that it prints; skips where Node, npm or Chromium are missing."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    missing = [
        name
        for name, found in (("node", shutil.which("node")), ("npm", shutil.which("npm")), ("chromium", chromium))
        if not found
    ]
    if missing:
        pytest.skip(f"no {', '.join(missing)} (Debian: apt install nodejs npm chromium)")
    _install()

    def run(script: str, *words: str) -> Any:
        done = subprocess.run(
            ["node", str(HERE / script), *words],
            env=os.environ | {"CHROMIUM": str(chromium)},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def _install() -> None:
    """Bring node_modules/ to package-lock.json, once."""
    lock, installed = HERE / "package-lock.json", HERE / "node_modules" / ".package-lock.json"
    if installed.is_file() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return
    words = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"npm ci failed: {done.stderr[-300:]}")
