"""Nine lines of YAML whose aliases stand for billions of items are refused at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{depth}: &a{depth} [{', '.join([f'*a{depth - 1}'] * 9)}]\n" for depth in range(1, 10)
)


def test_aliases_of_aliases(tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(BOMB)
    line = [sys.executable, "-m", "robustkd", "plan", "bomb.yaml"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "bomb.yaml: its aliases stand for more than 100,000 keys and items" in " ".join(done.stderr.split())
