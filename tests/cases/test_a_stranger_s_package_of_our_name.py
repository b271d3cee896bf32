"""robustkd is on no public index: whoever registers the name there must get nobody's machine by what robustkd writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import robustkd
from robustkd.cli import cli
from robustkd.contracts.extras import installation, requirements

ROOT = Path(robustkd.__file__).resolve().parents[1]
FROM_AN_INDEX = re.compile(r"pip install (?:-U )?['\"]?robustkd\b|pypi\.org/project/robustkd|dependencies = \[\"robustkd")
"""robustkd by its bare name, which pip looks for in an index where it is not installed."""


def written() -> list[Path]:
    found = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "SECURITY.md"]
    for folder in ("robustkd", "attacks", "defenses", "campaigns"):
        found += [file for end in ("*.py", "*.j2", "*.yaml") for file in (ROOT / folder).rglob(end)]
    return found


def test_nothing_tells_to_install_it_by_its_bare_name() -> None:
    assert [file for file in written() if FROM_AN_INDEX.search(file.read_text(encoding="utf-8"))] == []


def test_an_extra_is_installed_package_by_package() -> None:
    said = installation("llm")
    assert said.startswith("pip install 'transformers>=")
    assert {need.name for need in requirements("llm")} == {"transformers", "peft", "gguf"}
    assert "robustkd" not in said


@pytest.mark.parametrize("group", ["defense", "attack"])
def test_a_new_plugin_asks_no_index_for_it(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, ["new", group, "mine"]).exit_code == 0
    files = [file.read_text() for file in (tmp_path / "robustkd-mine").iterdir() if file.is_file()]
    assert len(files) >= 3
    assert not any(FROM_AN_INDEX.search(text) for text in files)
    assert any("dependencies = []" in text for text in files)
