"""The set-up of a report: what was attacked with what, from which paper, at which commit, with which command."""

from __future__ import annotations

import pytest

from robustkd import plugins
from robustkd.reporting import summary_rows, write_report
from robustkd.reporting.latex import latex
from robustkd.reporting.markdown import markdown
from robustkd.reporting.set_up import SetUp, last_run
from robustkd.scoring.results import Results
from robustkd.scoring.summaries import AttackSummary
from support.example_results import campaign

FAMILIES = {"adv-lib", "art", "foolbox", "torchattacks"}
"""Their members have the papers."""


@pytest.mark.parametrize("group", ["attacks", "defenses"])
def test_the_paper_is_the_one_that_the_class_names(group: plugins.Group) -> None:
    for name in sorted(set(plugins.names(group)) - FAMILIES):
        if plugins.is_built_in(group, name):
            assert plugins.paper(group, name) == plugins.load(group, name).source != "", name


def test_a_plugin_that_is_not_installed_has_no_paper() -> None:
    assert plugins.paper("attacks", "nobody's") == ""
    assert plugins.paper("attacks", "torchattacks:PGD") == ""


@pytest.fixture(scope="module")
def attacked() -> Results:
    results = campaign((0,))
    known = {"pgd": AttackSummary("pgd", "1", {"steps": 20}), "cw": AttackSummary("cw-l2", "1", {})}
    return Results(**{**vars(results), "attacks": known})


SET_UP = SetUp(
    campaign_file="version: 1\n",
    gates=["mtard at least 70.0 %: passed"],
    defenses={"mtard": {"kind": "mtard", "epochs": 4}},
    run=last_run(
        ["/somewhere/robustkd/__main__.py", "run", "mine.yaml"],
        {"commit": "0123456789abcdef", "dirty": True},
        "2026-11-30T05:00:00+00:00",
        {"robustkd": "0.2.0", "torch": "2.9.0", "zlib": "1"},
    ),
)
TOLD = (
    "Madry et al. 2018, arXiv:1706.06083",
    "Zhao et al. 2022 (ECCV) and 2024 (TPAMI, arXiv:2306.16170)",
    "commit 0123456789 with changes",
    "Last run 2026-11-30 05:00 UTC",
    "robustkd 0.2.0, torch 2.9.0",
    "robustkd run mine.yaml",
    "mtard at least 70.0",
    "Data hash",
    "9f2c51d0a7e84b33",
    "2025-11-22",
)


def test_page_markdown_and_latex_tell_the_same_set_up(attacked: Results, tmp_path) -> None:
    files = write_report(attacked, tmp_path, set_up=SET_UP)
    page = files.html.read_text(encoding="utf-8")
    for text in (page, files.markdown.read_text(encoding="utf-8"), files.latex.read_text(encoding="utf-8")):
        plain = " ".join(text.split())
        assert [part for part in TOLD if part not in plain] == []


def test_the_command_is_one_that_can_be_typed_elsewhere() -> None:
    for first in ("/usr/bin/robustkd", "/somewhere/robustkd/__main__.py"):
        assert last_run([first, "run", "mine.yaml"], {}, "", {}).command == "robustkd run mine.yaml"
    assert last_run(["/usr/lib/pytest/__main__.py", "-q"], {}, "", {}).command == "python -m pytest -q"
    assert last_run([], {}, "", {}).command == ""


def test_what_is_not_known_is_left_out(attacked: Results) -> None:
    rows = summary_rows(attacked)
    assert "Last run" not in markdown(attacked, rows)
    assert "Command" not in latex(attacked, rows)
    outside = last_run(["robustkd"], {}, "2026-11-30T05:00:00+00:00", {})
    assert outside.sentence == "Last run 2026-11-30 05:00 UTC"
