"""The tables of docs/strength.md are what was measured, and nothing was written by hand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import click
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(BENCHMARKS))
    import strength_tables

    yield strength_tables
    sys.path.remove(str(BENCHMARKS))


def row(**fields):
    common = {"implementation": "robustkd", "network": "pgd_at", "images": 40, "budget": {"steps": 10, "step_size": 0.1}}
    return {**common, "forwards": 9.6, "backwards": 7.0, **fields}


def page(name):
    return f"before\n<!-- table: {name} -->\nold\n<!-- end of the table -->\nafter\n"


def lines(made):
    return [line for line in made.splitlines() if line.startswith("| `")]


def test_the_page_says_what_the_file_of_results_says(script) -> None:
    rows = json.loads((BENCHMARKS / "results" / "strength.json").read_text())["rows"]
    written = script.PAGE.read_text()
    assert script.tables(rows, written) == written
    shown = sum(line.startswith("| `") for line in written.splitlines())
    assert shown == sum(row["implementation"] == "robustkd" for row in rows)


def test_seeds_are_told_where_they_differ_and_a_peer_that_failed_has_no_number(script) -> None:
    same = {"comparison": "pgd", "eps": 4 / 255}
    ours = row(**same, robust_accuracy=0.5, robust_accuracies=[0.45, 0.5, 0.55])
    peer = row(**same, implementation="adv-lib", robust_accuracy=0.25, robust_accuracies=[0.25] * 3, forwards=10.0)
    failed = row(**same, implementation="foolbox", error="ValueError: no")
    made = script.tables([ours, peer, failed], page("norms pgd_at"))
    before, after = made.split("\n| attack |")[0], made.rsplit("|\n", 1)[1]
    assert (before, after) == ("before\n<!-- table: norms pgd_at -->", "<!-- end of the table -->\nafter\n")
    assert lines(made) == [
        "| `pgd`, 10 steps | `pgd_at`, 40 | linf 4/255 | 50.0 % (45.0, 50.0, 55.0) "
        "| adversarial-library 25.0 %; foolbox no result | 10 + 7; 10 + 7; - |"
    ]


def test_a_search_for_the_nearest_has_its_median_unless_it_is_infinite(script) -> None:
    near = {"comparison": "fmn-l2", "eps": 0.1, "budget": {"steps": 100}}
    ours = row(**near, median_norm=1.25, median_norms=[1.25], success=1.0)
    peer = row(**near, implementation="foolbox", median_norm=math.inf, median_norms=[math.inf], success=0.125)
    made = script.tables([ours, peer], page("nearest pgd_at"))
    assert lines(made) == ["| `fmn`, l2, 100 steps | `pgd_at`, 40 | 1.25, 100 % found | foolbox 12 % found | 10 + 7; 10 + 7 |"]


@pytest.mark.parametrize(
    ("comparison", "eps", "said"),
    [("patch-rs", 3.0, "3 x 3 pixels"), ("stadv", 0.02, "0.02 pixels of flow"), ("transfer-ila", 4 / 255, "linf 4/255")],
)
def test_every_threat_has_its_budget(script, comparison, eps, said) -> None:
    ours = row(comparison=comparison, eps=eps, robust_accuracy=0.5, robust_accuracies=[0.5])
    assert f"| {said} |" in lines(script.tables([ours], page(f"attacks {comparison}")))[0]


def test_a_table_of_which_nothing_was_measured_is_refused(script) -> None:
    with pytest.raises(click.ClickException, match="no row of the table 'nearest pgd_at'"):
        script.tables([], page("nearest pgd_at"))
