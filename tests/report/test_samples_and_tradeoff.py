"""Views by class and by sample, the trade-off chart, and the LaTeX tables."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from robustkd.application import session
from robustkd.campaigns.file import spec
from robustkd.cli import cli
from robustkd.reporting import AttackedSamples, SampleEvidence, summary_rows
from robustkd.reporting.latex import escape, latex
from robustkd.reporting.page import page
from robustkd.reporting.presentation import terms_of
from robustkd.reporting.published import FROM_MEMORY, TRANSCRIBED, references
from robustkd.reporting.samples import MAX_OUTCOMES, BrokenBy, SampleRow, broken_by, class_table, listing
from robustkd.reporting.set_up import SetUp
from robustkd.reporting.tradeoff import MOST_LINES, pareto, shown_defenses, tradeoff
from robustkd.scoring.summaries import DataSummary, ThreatSummary
from support.example_results import N, broken_campaign, campaign, evidence, large

STANDS = -1


def two_attacks(seed: int = 0) -> AttackedSamples:
    """Six samples of two classes; the last is misclassified before."""
    label, before = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    first = np.array([1, 1, STANDS, STANDS, STANDS, STANDS])
    second = np.array([1, STANDS, STANDS, 0, STANDS, STANDS])
    return AttackedSamples("standard", seed, np.arange(10, 16), label, before == label, {"fgsm": first, "pgd": second}, before)


# ---- samples


def test_a_class_is_robust_where_every_attack_fails():
    results = campaign((0, 1))
    trained = [replace(item, attacks=["fgsm", "pgd"]) for item in results.defenses if item.defense == "standard"]
    other = replace(two_attacks(1), taken_for={"fgsm": np.full(6, STANDS), "pgd": np.full(6, STANDS)})
    table = class_table(replace(results, defenses=trained), SampleEvidence(["cat", "dog"], [two_attacks(), other]))
    cat, dog = table.cells["standard"]
    assert (cat.robust, dog.robust) == pytest.approx(((1 / 3 + 1) / 2, (1 / 3 + 2 / 3) / 2))  # means over the seeds
    assert (cat.clean, dog.clean) == pytest.approx((1, 2 / 3))
    assert (table.columns, table.sizes, table.left_out) == (("cat", "dog"), (3, 3), 0)
    assert cat.low < cat.robust < cat.high
    # An attack under another threat model is not in the worst case.
    alone = [replace(item, attacks=["fgsm"]) for item in trained[:1]]
    (cat, dog) = class_table(replace(results, defenses=alone), SampleEvidence(["cat", "dog"], [two_attacks()])).cells[
        "standard"
    ]
    assert (cat.robust, dog.robust) == pytest.approx((1 / 3, 2 / 3))


def test_classes_agree_with_the_headline_and_the_weakest_of_many_are_kept():
    results = campaign((0,))
    table = class_table(results, evidence(results))
    for item in results.defenses:
        cells = table.cells[item.defense]
        total = sum(cell.robust * n for cell, n in zip(cells, table.sizes, strict=True))
        assert total / N == pytest.approx(min(c.robust_accuracy for c in results.cells if c.defense == item.defense), abs=1 / N)
    many = class_table(results, evidence(results, classes=50))
    assert (len(many.columns), many.left_out) == (20, 30)
    shown = np.mean([[cell.robust for cell in row] for row in many.cells.values()])
    everything = class_table(results, evidence(results)).cells.values()
    assert shown < np.mean([[cell.robust for cell in row] for row in everything])


def test_what_an_attack_alone_breaks():
    assert broken_by(SampleEvidence(["cat", "dog"], [two_attacks()]))["standard"] == {
        "fgsm": BrokenBy(2, 1),
        "pgd": BrokenBy(2, 1),
    }


def test_the_listing_says_of_each_sample_what_became_of_it():
    listed = listing(SampleEvidence(["cat", "dog"], [two_attacks()]), terms_of(campaign()))
    assert listed.data["defenses"][0]["taken"] == {"fgsm": [2, 2, 0, 0, 0, 0], "pgd": [2, 0, 0, 1, 0, 0]}
    assert listed.rows[0] == SampleRow(10, "cat", "standard", "broken", "fgsm → dog, pgd → dog")
    assert [row.outcome for row in listed.rows[2:]] == ["held", "broken", "held", "misclassified before the attack"]
    assert (listed.rows[2].fell, listed.rows[5].fell) == ("nothing", "taken for cat without an attack")
    assert listing(SampleEvidence([], []), terms_of(campaign())) is None


def test_the_listing_of_a_large_campaign_keeps_the_samples_that_fit():
    listed = listing(evidence(large(30, 40), n=1000), terms_of(campaign()))
    assert listed.kept == MAX_OUTCOMES // 1200 < listed.of == 1000
    assert sum(len(taken) for part in listed.data["defenses"] for taken in part["taken"].values()) <= MAX_OUTCOMES


def test_the_page_carries_the_listing_and_a_name_cannot_leave_it():
    results = campaign((0,))
    made = replace(evidence(results), classes=["</script><script>alert(1)</script>", *"123456789"])
    html = page(results, summary_rows(results), (), made)
    (data,) = re.findall(r'<script type="application/json" id="sample-data">(.*?)</script>', html, re.S)
    assert json.loads(data)["classes"] == made.classes
    assert html.count("<script>") == 1


# ---- trade-off


def test_the_front_is_what_nothing_beats():
    points = [(0.9, 0.5), (0.8, 0.6), (0.8, 0.5), (0.95, 0.1), (0.7, 0.6), (0.9, 0.5)]
    assert pareto(points) == {(0.9, 0.5), (0.8, 0.6), (0.95, 0.1)}


def test_a_number_that_is_not_credible_is_on_no_front():
    rows = summary_rows(campaign((0,)))
    drawn = tradeoff(rows)
    best = {spot.row.defense: spot.best for spot in drawn.spots}
    assert best == {"standard": True, "distilled": False, "pgd-at": True, "mtard": True}
    believed = tradeoff([replace(row, verdict="credible") for row in rows])
    assert {spot.row.defense: spot.best for spot in believed.spots}["distilled"]
    assert [spot.letter for spot in drawn.spots] == ["A", "B", "C", "D"]
    front = sorted((spot.x, spot.y) for spot in drawn.spots if spot.best)
    assert drawn.front == "M0 " + "V".join(f"{y:g}H{x:g}" for x, y in front) + "V100"
    assert all(spot.high <= spot.y <= spot.low for spot in drawn.spots)
    assert tradeoff(rows[:1]) is None


def test_published_figures_stand_beside_their_own_data_and_threat_alone():
    digits = campaign((0,))
    assert references(digits) == ()
    cifar = replace(digits, data=DataSummary("cifar10", 10_000), threat=ThreatSummary("linf", 8 / 255))
    assert references(replace(cifar, threat=ThreatSummary("l2", 8 / 255))) == ()
    assert references(replace(cifar, threat=ThreatSummary("linf", 4 / 255))) == ()
    known = references(cifar)
    assert {item.provenance for item in known} == {TRANSCRIBED, FROM_MEMORY}
    assert {item.name: (item.clean, item.robust) for item in known}["RSLAD"] == (0.8338, 0.5149)
    with_them, without = tradeoff(summary_rows(cifar), known), tradeoff(summary_rows(cifar))
    assert [spot.best for spot in with_them.spots] == [spot.best for spot in without.spots]
    html = page(cifar, summary_rows(cifar), (), SampleEvidence((), ()))
    assert "Compare a figure with its paper before you cite it" in html
    assert html.count('class="reference"') == len(known)
    assert html.count(f"figure {FROM_MEMORY}") == sum(item.provenance == FROM_MEMORY for item in known)


def test_a_chart_of_many_defenses_keeps_the_front():
    rows = [
        replace(row, robust_accuracy=(row.robust_accuracy or 0) - i / 1000) for i, row in enumerate(summary_rows(large(60, 2)))
    ]
    best_clean = replace(rows[0], clean_accuracy=0.999, robust_accuracy=0.0, verdict="credible")
    shown = shown_defenses([best_clean, *rows[1:]])
    assert len(shown) == MOST_LINES
    assert shown[0] == best_clean


# ---- LaTeX


def test_latex_tables_are_whole():
    results = campaign()
    text = latex(results, summary_rows(results), class_table(results, evidence(results)))
    assert re.findall(r"\\label\{tab:(\w+)\}", text) == [
        "summary",
        "holds",
        "attacks",
        "classes",
    ]  # no comparisons, no table of pairs
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        lines = [line for line in body.strip().splitlines() if not re.fullmatch(r"\\(top|mid|bottom)rule", line)]
        assert all(line.endswith(r" \\") and line.count(" & ") == len(columns) - 1 for line in lines), body
        assert [body.count(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 1, 1]
    for name in re.findall(r"\\begin\{(\w+)\}", text):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}")
    assert re.search(r"^distilled & 97\.3 & 20\.1 & \[\d+\.\d, \d+\.\d\] & .* & not credible \\\\$", text, re.M)
    assert r"$L_\infty$ $\leq$ 0.1" in text
    assert text.isascii()


def test_latex_keeps_what_a_name_would_command():
    assert escape("a_b & 50% #1 ~ ^ {x} \\input $y$\n") == (
        r"a\_b \& 50\% \#1 \textasciitilde{} \textasciicircum{} \{x\} \textbackslash{}input \$y\$ "
    )
    evil = replace(broken_campaign(), campaign="a\n\\input{secrets}")
    text = latex(evil, summary_rows(evil))
    assert text.splitlines()[0].startswith("% a \\input")  # still inside the comment
    assert r"\textless{}script\textgreater{}" in text


def test_the_command_prints_markdown_and_latex(monkeypatch, tmp_path):
    results = campaign((0,))
    monkeypatch.setattr(session, "_stored", lambda campaign, folder, rejudge: (None, results, evidence(results)))
    words = ["report", "quickstart", "--out", str(tmp_path), "--format"]
    printed = {form: CliRunner().invoke(cli, [*words, form]) for form in ("markdown", "latex")}
    assert printed["markdown"].output.startswith("# digits quickstart: does this defense hold?\n")
    defenses = {"mtard": {"kind": "mtard", "epochs": 4}}
    told = latex(results, summary_rows(results), class_table(results, evidence(results)), SetUp(defenses=defenses))
    known = {line for line in told.splitlines() if "mtard & mtard & epochs 4 &" not in line}
    assert known <= set(printed["latex"].output.splitlines())
    for form in printed:  # both say how the defenses were trained
        line = next(line for line in printed[form].output.splitlines() if "mtard" in line and "epochs" in line)
        assert "teachers" in line
    assert not list(tmp_path.iterdir())
    assert spec.load("quickstart").name == "quickstart"
