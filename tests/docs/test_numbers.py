"""Every number in the docs says where it came from, ``make numbers`` tells which are older than what they speak of, and those that can be
had in minutes are what comes out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "documented.py"
ROW = re.compile(r"^(\S+) +(\d+\.\d)% .*? (\d+\.\d)% \[", re.MULTILINE)
POINTS = 4.0
"""The README says that another processor's numbers differ by up to about three points."""


@pytest.fixture(scope="module")
def documented():
    sys.path.insert(0, str(SCRIPT.parent))
    import documented

    yield documented
    sys.path.remove(str(SCRIPT.parent))


def test_every_section_with_numbers_says_where_they_came_from(documented) -> None:
    known, written = documented.sources(), list(documented.sections_with_numbers())
    assert [place for place in written if place not in known] == []
    for page, heading in known:
        assert re.search(rf"^#+ {re.escape(heading)}$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE), heading
    for source in known.values():
        for path in source.code:
            assert (ROOT / path).exists(), path


def copied(root: Path, entry: dict[str, object]) -> Path:
    """A repository of one page with one number."""
    (root / "docs").mkdir()
    (root / "README.md").write_text("# x\n")
    (root / "docs" / "p.md").write_text("# page\n\n## Speed\n\nIt takes 3 seconds.\n\n## Words\n\nNone.\n")
    (root / "docs" / "numbers.yaml").write_text(yaml.safe_dump({"docs/p.md": {"Speed": entry}}))
    (root / "code.py").write_text("x = 1\n")
    git(root, "init", "-q")
    commit(root, "2026-11-01")
    return root


def git(root: Path, *words: str, day: str = "2026-11-01") -> None:
    moment = f"{day}T12:00:00"
    environment = {"GIT_AUTHOR_DATE": moment, "GIT_COMMITTER_DATE": moment, "PATH": "/usr/bin:/bin:/usr/local/bin"}
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *names, *words], cwd=root, check=True, env=environment, capture_output=True)


def commit(root: Path, day: str) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "x", day=day)


def told(documented, root: Path) -> dict[tuple[str, str], str]:
    known = documented.sources(root / "docs" / "numbers.yaml")
    assert list(documented.sections_with_numbers(root)) == [("docs/p.md", "Speed")]
    return {place: documented.state(source, root) for place, source in known.items()}


def test_a_number_is_stale_once_the_code_that_it_speaks_of_changes(documented, tmp_path: Path) -> None:
    root = copied(tmp_path, {"command": "make bench", "measured": "2026-11-02", "code": ["code.py"]})
    assert told(documented, root) == {("docs/p.md", "Speed"): "current"}
    (root / "code.py").write_text("x = 2\n")
    commit(root, "2026-11-03")
    (state,) = told(documented, root).values()
    assert state == "stale: code.py changed after 2026-11-02"


def test_words_about_the_code_make_no_number_stale(documented, tmp_path: Path) -> None:
    code = 'class A:\n    """Sums."""\n\n    x: int = 1\n    """One."""\n\n    def f(self):\n        """Of x."""\n        return self.x\n'
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sums.py").write_text(code)
    root = copied(tmp_path, {"command": "make bench", "measured": "2026-11-02", "code": ["folder"]})
    said = code.replace("Sums.", "It sums.").replace("One.", "1.").replace("return", "# why\n        return")
    (root / "folder" / "sums.py").write_text(said)
    commit(root, "2026-11-03")
    (root / "folder" / "sums.py").rename(root / "folder" / "adding.py")
    commit(root, "2026-11-04")
    assert told(documented, root) == {("docs/p.md", "Speed"): "current"}
    (root / "folder" / "adding.py").write_text(said.replace("= 1", "= 2"))
    (root / "folder" / "new.py").write_text("")
    (state,) = told(documented, root).values()
    assert state == "stale: folder/adding.py changed after 2026-11-02"
    commit(root, "2026-11-05")
    (state,) = told(documented, root).values()
    assert state == "stale: folder/adding.py, folder/new.py changed after 2026-11-02"


def test_a_number_speaks_of_what_its_code_imports(documented, tmp_path: Path) -> None:
    (tmp_path / "attacks" / "engine").mkdir(parents=True)
    (tmp_path / "attacks" / "pgd.py").write_text("from robustkd.attacks.engine import ascent\n")
    for name in ("ascent", "other"):
        (tmp_path / "attacks" / "engine" / f"{name}.py").write_text("steps = 1\n")
    root = copied(tmp_path, {"command": "make bench", "measured": "2026-11-02", "code": ["attacks/pgd.py"]})
    (root / "attacks" / "engine" / "other.py").write_text("steps = 2\n")
    assert told(documented, root) == {("docs/p.md", "Speed"): "current"}
    (root / "attacks" / "engine" / "ascent.py").write_text("steps = 2\n")
    (state,) = told(documented, root).values()
    assert state == "stale: attacks/engine/ascent.py changed after 2026-11-02"


def test_a_preset_s_number_is_stale_once_its_plan_is_another(documented) -> None:
    plan, versions = documented.planned("quickstart")
    source = documented.Source(preset="quickstart", measured="2026-11-01", plan=plan, versions=versions)
    assert documented.state(source) == "current"
    former = source.model_copy(update={"plan": "0" * 32, "versions": {**versions, "fgsm": "0"}})
    assert documented.state(former) == f"stale: fgsm 0 -> {versions['fgsm']}"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"command": "make x", "code": ["code.py"]}, "measured: the day is missing"),
        ({"command": "make x", "measured": "2026-11-02"}, "code: the paths"),
        ({"preset": "a", "test": "b", "measured": "2026-11-02"}, "one of preset, command, test and not_measured"),
        ({}, "not none"),
        ({"test": "b", "tested": True}, "tested"),
    ],
)
def test_an_entry_that_says_too_little_or_too_much_is_named(documented, tmp_path: Path, entry, said: str) -> None:
    root = copied(tmp_path, entry)
    with pytest.raises(Exception, match=said) as error:
        documented.sources(root / "docs" / "numbers.yaml")
    assert "docs/p.md: Speed" in str(error.value)


def rows(text: str) -> dict[str, tuple[float, float]]:
    """Clean and robust accuracy by defense, of the first table in ``text``."""
    found: dict[str, tuple[float, float]] = {}
    for name, clean, robust in ROW.findall(text):
        found.setdefault(name, (float(clean), float(robust)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("page", "campaign"), [("README.md", "quickstart"), ("docs/start.md", "first.yaml")])
def test_a_table_is_what_comes_out(page: str, campaign: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    if campaign.endswith(".yaml"):
        match = re.search(rf"```yaml\n# file: {campaign}\n(.*?)```", text, re.DOTALL)
        assert match
        (tmp_path / campaign).write_text(match[1])
    command = [sys.executable, "-m", "robustkd", "run", campaign, "--no-track", "--workers", "0", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    written, now = rows(text), rows(done.stdout)
    assert len(written) >= 3
    assert written.keys() == now.keys()
    for name, (clean, robust) in written.items():
        assert now[name] == (pytest.approx(clean, abs=POINTS), pytest.approx(robust, abs=POINTS)), name
