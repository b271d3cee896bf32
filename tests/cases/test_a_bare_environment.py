"""A campaign where next to nothing is set: no home, no terminal, an ASCII locale, warnings that are errors. The table is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import robustkd
from support.campaigns import tiny_campaign

ROOT = str(Path(robustkd.__file__).parents[1])
ENVIRONMENTS = {
    "nothing": {},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": "/nonexistent"},
    "warnings are errors": {"PYTHONWARNINGS": "error", "HOME": "/nonexistent"},
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_table_is_the_same(tmp_path, name):
    (tmp_path / "c.yaml").write_text(tiny_campaign("bare", train=60, test=12), encoding="utf-8")

    def numbers(out: str, environment: dict[str, str]) -> list[dict[str, object]]:
        argv = [
            sys.executable,
            "-m",
            "robustkd",
            "run",
            "c.yaml",
            "--out",
            out,
            "--workers",
            "1",
            "--device",
            "cpu",
            "--no-track",
        ]
        pipe = subprocess.PIPE
        done = subprocess.run(
            argv, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        assert b"Traceback" not in done.stderr
        assert b"bare" in done.stdout
        cells = json.loads((tmp_path / out / "results.json").read_text(encoding="utf-8"))["cells"]
        return [{key: cell[key] for key in ("defense", "attack", "robust_accuracy", "clean_accuracy")} for cell in cells]

    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": ROOT} | ENVIRONMENTS[name]
    assert numbers("there", bare) == numbers("here", os.environ | {"PYTHONPATH": ROOT})
