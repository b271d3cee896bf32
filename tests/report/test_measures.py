"""The table that compares defenses by what the analyses found."""

from __future__ import annotations

from pathlib import Path

from robustkd.contracts import Table
from robustkd.reporting import write_report
from robustkd.reporting.analyses import measures, shown_tables
from robustkd.reporting.palette import heat
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


def test_three_seeds_have_an_interval(tmp_path: Path) -> None:
    """It is the one of Student's t; the ends of an interval of each training have none."""

    def trained(name: str, seed: int, kept: float) -> DefenseResult:
        facts = {"n": 100, "clean_accuracy": 0.9, "robust_accuracy": 0.5, "ci_low": 0.4, "ci_high": 0.6}
        told = table(False, kept=kept, kept_low=kept - 0.1, equal=0.5)
        return DefenseResult(name, seed, "standard", "done", "linf", 0.1, analyses={"forgetting": told}, **facts)

    rows = [trained(name, seed, kept) for name in ("a", "b") for seed, kept in enumerate((0.4, 0.5, 0.6))]
    several = Results("compared", ThreatSummary("linf", 0.1), DataSummary("digits", 100), [], rows)
    found = measures(several)
    half = 4.302652729911275 * 0.1 / 3**0.5
    assert found.rows[0] == ("a", [f"0.5 [{0.5 - half:.3g}, {0.5 + half:.3g}]", "0.4", "0.5"])
    files = write_report(several, tmp_path)
    assert "95 % interval of the mean over the seeds" in files.markdown.read_text()
    assert "95 % interval over the seeds" in files.html.read_text()
    rows[:] = [row for row in rows if row.seed < 2]
    assert measures(several).rows[0] == ("a", ["0.45", "0.35", "0.5"])


def test_accuracies_are_coloured_by_what_stands() -> None:
    shown = shown_tables(Results("one", ThreatSummary("linf", 0.1), DataSummary("digits", 100), [], [accurate()]))[0]
    assert (shown.text(0.25), shown.metric("kept_accuracy")) == ("25.0", "75.0")
    assert (shown.fill(1.0), shown.fill(0.0)) == (heat(1), heat(0))


def accurate() -> DefenseResult:
    told = Table("accuracy", ["row"], ["column"], [[0.25]], metrics={"kept_accuracy": 0.75}, standing=True)
    facts = {"n": 100, "clean_accuracy": 0.9, "robust_accuracy": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    return DefenseResult("a", 0, "standard", "done", "linf", 0.1, analyses={"forgetting": told}, **facts)
