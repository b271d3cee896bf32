"""The report as a browser shows it: accessible, quick, usable by keyboard, whole without a network and without scripts."""

import re

import pytest

from robustkd.reporting import write_report
from robustkd.scoring.results import Results
from robustkd.scoring.summaries import DataSummary, ThreatSummary
from support.example_results import N, broken_campaign, campaign, evidence, large, pictures

pytestmark = pytest.mark.slow

SECONDS = 2.0
"""In which a report of 200 cells opens."""


def page(folder, results: Results, **parts) -> str:
    return write_report(results, folder, evidence=evidence(results), **parts).html.as_uri()


def cifar10() -> Results:
    """Beside published figures."""
    made = campaign()
    return Results(made.campaign, ThreatSummary("linf", 8 / 255), DataSummary("cifar10", N), made.cells, made.defenses)


MADE = {
    "report": lambda: (campaign(), {"gallery": pictures()}),
    "published": lambda: (cifar10(), {}),
    "broken": lambda: (broken_campaign(), {}),
}


@pytest.mark.parametrize("name", MADE)
def test_no_finding_of_axe(node, screenshots, tmp_path, name):
    results, parts = MADE[name]()
    found = node("accessibility.mjs", page(tmp_path, results, **parts), screenshots, name)
    assert {(item["width"], item["scheme"]) for item in found} == {(w, s) for w in (1280, 390) for s in ("light", "dark")}
    for item in found:
        where = f"{item['width']} px, {item['scheme']}"
        assert item["passes"] > 30, where  # axe looked at something
        assert item["violations"] == [], where
        assert item["wide"] <= 0, f"{where}: the page scrolls sideways"
        assert item["complaints"] == [], where


def test_a_report_of_200_cells_opens_at_once(node, tmp_path):
    results = large(10, 20)
    url = page(tmp_path, results)
    assert min(node("opening.mjs", url, "7")) < SECONDS


@pytest.fixture(scope="module")
def reader(node, screenshots, tmp_path_factory):
    """What the script report.mjs saw, and the page's text."""
    folder = tmp_path_factory.mktemp("report")
    told = node("report.mjs", page(folder, campaign(), gallery=pictures()), screenshots)
    return told, (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_asks_nobody_for_anything(reader):
    told, _ = reader
    assert (told["requests"], told["complaints"]) == ([], [])


def test_a_reader_filters_samples_by_keyboard(reader):
    told, _ = reader
    rows = 4 * N
    assert told["all"]["found"] == f"{rows} of {rows} rows; shown are 1 to 25."
    assert told["defense"]["found"] == f"{N} of {rows} rows; shown are 1 to 25."
    assert {row[2] for row in told["defense"]["rows"]} == {"distilled"}
    attacked = next(part for part in evidence(campaign()).attacked if (part.defense, part.seed) == ("distilled", 0))
    assert re.match(r"\d+", told["broken"]["found"])[0] == str((attacked.taken_for["fgsm"] >= 0).sum())
    assert {tuple(row[2:4]) for row in told["broken"]["rows"]} == {("distilled", "broken")}
    assert all(row[4].startswith("fgsm → ") and "," not in row[4] for row in told["broken"]["rows"])
    assert {row[1] for row in told["label"]["rows"]} == {"class 1"}


def test_a_reader_turns_pages_by_keyboard(reader):
    told, _ = reader
    assert told["second"] == {"found": f"{4 * N} of {4 * N} rows; shown are 26 to 50.", "focus": "more"}
    assert told["first"] == {"found": f"{4 * N} of {4 * N} rows; shown are 1 to 25.", "focus": "more"}


def test_without_scripts_the_first_rows_are_there(reader):
    told, html = reader
    assert told["plain"] == {"form": True, "button": True, "rows": 25, "says": True}
    lines = re.findall(r'<tr role="row"><th role="rowheader" scope="row">(#\d+)</th>(.*?)</tr>', html)
    assert [[first, *re.findall(r'<td role="cell">(.*?)</td>', rest)] for first, rest in lines] == told["all"]["rows"]


def test_light_and_dark_at_a_key(reader):
    told, _ = reader
    assert told["light"] == told["back"] == "rgb(255, 255, 255)"
    assert told["dark"] == told["remembered"] == "rgb(18, 22, 27)"
