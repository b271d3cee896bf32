"""The table that compares defenses by what the analyses found."""

from __future__ import annotations

from pathlib import Path

from robustkd.contracts import Table
from robustkd.reporting import write_report
from robustkd.reporting.analyses import measures
from robustkd.scoring.results import DefenseResult, Results
from robustkd.scoring.summaries import DataSummary, ThreatSummary

TOLD = ["ece", "accuracy in fog (natural)", "accuracy in fog (worse)"]


def table(shares: bool, **metrics: float) -> Table:
    return Table("what it is", ["row"], ["column"], [[0.5]], shares, metrics)


def results() -> Results:
    def trained(name: str, seed: int, **analyses: Table) -> DefenseResult:
        facts = {"n": 100, "clean_accuracy": 0.9, "robust_accuracy": 0.5, "ci_low": 0.4, "ci_high": 0.6}
        return DefenseResult(name, seed, "standard", "done", "linf", 0.1, analyses=analyses, **facts)

    fog = {"natural": table(True, accuracy_in_fog=0.7), "worse": table(True, accuracy_in_fog=0.3)}
    defenses = [
        trained("plain", 0, certainty=table(False, ece=0.05), **fog),
        trained("plain", 1, certainty=table(False, ece=0.07), **fog),
        trained("student", 0, certainty=table(False, ece=0.12)),
        trained("unexamined", 0),
    ]
    return Results("compared", ThreatSummary("linf", 0.1), DataSummary("digits", 100), [], defenses)


def test_each_defense_has_a_row_of_means_over_its_seeds() -> None:
    found = measures(results())
    assert found.names == TOLD
    assert found.rows == [("plain", ["0.06", "70.0", "30.0"]), ("student", ["0.12", "", ""])]
    one = results()
    one.defenses[:] = one.defenses[:2]
    assert measures(one).rows == []  # nothing to compare it with


def test_the_report_shows_them_before_the_tables_that_they_come_from(tmp_path: Path) -> None:
    files = write_report(results(), tmp_path)
    page, text = files.html.read_text(), files.markdown.read_text()
    assert "| plain | 0.06 | 70.0 | 30.0 |" in text
    assert text.index("| plain | 0.06 |") < text.index("## plain: certainty")
    section = page.partition('id="analyses"')[2].partition("</section>")[0]
    assert all(f">{name}</th>" in section for name in TOLD)
    assert section.index(">0.06</td>") < section.index("plain: certainty")
    assert "<details>" not in section
