"""A results folder on a read-only mount, or another user's: its results can be read and written up elsewhere, and a run says in a
sentence why it cannot go on there.

Root may write everywhere, so root tries it with a mount of its own, and as another user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import robustkd
from support.campaigns import tiny_campaign

ROOT = Path(robustkd.__file__).parents[1]
MOUNTED = ("unshare", "-m", "sh", "-c", 'mount --bind -o ro "$0" "$0" && exec "$@"')


def may_mount() -> bool:
    return not os.getuid() and subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0


@pytest.fixture(params=["read-only", "of another user"])
def locked(request, tmp_path):
    """``locked(*words)`` runs ``robustkd`` where ``out`` cannot be written to, and tells the exit code and what was said."""
    if os.getuid() == 0 and request.param == "of another user":
        pytest.skip("root may write into everybody's folder: the test of the copy tries that")
    if os.getuid() == 0 and not may_mount():
        pytest.skip("no rights for a mount of its own")
    (tmp_path / "c.yaml").write_text(tiny_campaign("locked", train=60, test=12))
    robustkd.run(tmp_path / "c.yaml", tmp_path / "out", workers=0, device="cpu", track=False)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    if os.getuid():
        for folder in [tmp_path / "out", *(path for path in (tmp_path / "out").rglob("*") if path.is_dir())]:
            folder.chmod(0o555)
        (tmp_path / "out" / ".lock").chmod(0o444)

    def call(*words: str) -> tuple[int, str]:
        prefix = [] if os.getuid() else [*MOUNTED, str(tmp_path / "out")]
        argv = [*prefix, sys.executable, "-m", "robustkd", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    yield call
    for path in (tmp_path / "out").rglob("*"):
        if path.is_dir() and os.getuid():
            path.chmod(0o755)
    (tmp_path / "out").chmod(0o755)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_the_report_is_written_elsewhere_and_a_run_says_why_it_cannot_go_on(locked, tmp_path):
    code, said = locked("report", "c.yaml", "--out", "out", "--to", "elsewhere")
    assert code == 0, said
    assert "plain" in (tmp_path / "elsewhere" / "report.md").read_text()
    code, said = locked("report", "c.yaml", "--out", "out")
    assert code == 1
    assert "the report cannot be written into out: " in said
    assert "--to" in said
    code, said = locked("run", "c.yaml", "--out", "out", "--workers", "0", "--device", "cpu")
    assert code == 1
    assert said.startswith("error: the output folder out cannot be written: ")
    assert said.count("\n") == 2


@pytest.mark.slow
def test_what_only_reads_works_and_what_writes_says_that_it_cannot(locked):
    for words in ("report c.yaml --out out --format markdown", "store verify c.yaml --out out", "plan c.yaml --out out"):
        code, said = locked(*words.split())
        assert code == 0, f"{words}: {said}"
    for words in ("track c.yaml --out out", "run c.yaml --out out --redo fgsm --workers 0 --device cpu"):
        code, said = locked(*words.split())
        assert code, words
        assert len(said.strip().splitlines()) <= 4, said


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to be another user")
def test_the_folder_of_another_user(tmp_path):
    """Root's results, read by ``nobody``."""
    prefix = ["setpriv", "--reuid", "nobody", "--clear-groups", sys.executable]
    if subprocess.run([*prefix, "-c", ""], check=False, capture_output=True).returncode:
        pytest.skip("nobody else may run this Python")
    prefix += ["-m", "robustkd"]
    (tmp_path / "c.yaml").write_text(tiny_campaign("foreign", train=60, test=12))
    robustkd.run(tmp_path / "c.yaml", tmp_path / "out", workers=0, device="cpu", track=False)
    (own := tmp_path / "own").mkdir()
    shutil.chown(own, "nobody")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(own), "XDG_CACHE_HOME": str(own), "TMPDIR": str(own)}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*prefix, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = call("report", "c.yaml", "--out", "out", "--to", str(own / "report"))
    assert done.returncode == 0, done.stderr
    assert "plain" in (own / "report" / "report.md").read_text()
    done = call("run", "c.yaml", "--out", "out", "--workers", "0", "--device", "cpu")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "the output folder out cannot be written: Permission denied" in done.stderr
