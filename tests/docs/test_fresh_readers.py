"""Whoever follows a page of docs/contributing to the letter, and knows nothing else, has a plug-in that conforms.

The page's files are written into a copy of the repository, its line is put into the file of entry points, and its commands are run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "contributing"
COPIED = ("robustkd", "attacks", "defenses", "campaigns", "entry_points", "setup.py", "pyproject.toml", "README.md")
OF_THE_TESTS = ("conftest.py", "support", "defenses/conftest.py")
FILE = re.compile(r"```\w+\n# file: (\S+)\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
MAKE = re.compile(r"^([a-z-]+):", re.MULTILINE)


class Reader:
    """Somebody with a checkout of the repository and one page."""

    def __init__(self, checkout: Path, page: Path) -> None:
        self.checkout, self.page = checkout, page
        self.text = page.read_text(encoding="utf-8")
        self.files = dict(FILE.findall(self.text))

    def copies_the_repository(self) -> None:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in (*COPIED, *(f"tests/{name}" for name in OF_THE_TESTS)):
            target = self.checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target, symlinks=True, ignore=ignored)
            else:
                shutil.copy(ROOT / name, target)

    def writes_the_files(self) -> None:
        for name, text in self.files.items():
            path = self.checkout / name
            if path.suffix == ".ini":
                assert len(text.splitlines()) == 1, "one line"
                path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")
            else:
                assert not path.exists(), f"{name} is there already: the example of {self.page.name} is no new plug-in"
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")

    def runs_the_commands(self) -> None:
        commands = [line[2:] for block in CONSOLE.findall(self.text) for line in block.splitlines() if line.startswith("$ ")]
        assert any("test-plugin" in command for command in commands)
        for command in commands:
            program, *words = shlex.split(command)
            if program == "make":
                assert set(words) <= set(MAKE.findall((ROOT / "Makefile").read_text())), command
                if words == ["install"]:  # of which this is what changes when a line is added
                    self.runs(sys.executable, "setup.py", "-q", "egg_info")
            else:
                assert program in ("robustkd", "pytest"), command
                if program == "pytest":
                    words += ["-p", "no:cacheprovider"]
                elif words[0] == "run":  # no child processes: the same cells, sooner
                    words += ["--workers", "0"]
                self.runs(sys.executable, "-m", program, *words)

    def runs(self, *command: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=self.checkout, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.page.name}: {shlex.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["add-an-attack.md", "add-a-defense.md", "add-a-check.md", "add-a-judge.md"])
def test_a_page_is_all_that_it_takes(page, tmp_path):
    reader = Reader(tmp_path / "checkout", PAGES / page)
    reader.copies_the_repository()
    reader.writes_the_files()
    code = [name for name in reader.files if name.endswith(".py") and not name.startswith("tests/")]
    assert len(code) == 1, "one file"
    assert [name for name in reader.files if name.endswith(".ini")], "one line"
    reader.runs_the_commands()


def test_every_file_that_a_page_names_is_there():
    for page in PAGES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        new = {name for name, _ in FILE.findall(text)}
        for name in re.findall(r"`((?:robustkd|attacks|defenses|campaigns|tests|entry_points)/[\w./-]*)`", text):
            assert name in new or (ROOT / name).exists(), (page.name, name)
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert (page.parent / target).exists(), (page.name, target)
