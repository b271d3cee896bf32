"""How the attacks searched, and what samples are taken for under attack: the report's charts against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from robustkd.contracts.check import Finding, Trace
from robustkd.reporting import AttackedSamples, SampleEvidence, write_report
from robustkd.reporting.confusion import confusions
from robustkd.reporting.searches import convergence, convergence_by_sample, norms, sample_course, strength
from robustkd.scoring.results import Results
from support.example_results import campaign


def samples(**more) -> AttackedSamples:
    """Six samples of three classes: two are wrong before, one is broken by both attacks, one by the second alone, two stand."""
    return AttackedSamples(
        "pgd-at",
        0,
        np.arange(6),
        np.array([0, 0, 1, 1, 2, 2]),
        np.array([True, True, True, True, False, False]),
        {"fgsm": np.array([1, -1, -1, -1, -1, -1]), "pgd": np.array([2, 2, -1, -1, -1, -1])},
        np.array([0, 0, 1, 1, 0, 1]),
        **more,
    )


def results(*attacks: str) -> Results:
    made = campaign((0,))
    defenses = [replace(one, attacks=list(attacks)) for one in made.defenses if one.defense == "pgd-at"]
    return replace(made, defenses=defenses, cells=[cell for cell in made.cells if cell.defense == "pgd-at"])


def test_a_sample_is_taken_for_what_the_first_attack_that_breaks_it_makes_of_it() -> None:
    (found,) = confusions(results("fgsm", "pgd"), SampleEvidence(("a", "b", "c"), (samples(),)), ["pgd-at"])
    assert found.columns == ("a", "b", "c")
    assert found.rows == (("a", 2, (0.0, 0.5, 0.5)), ("b", 2, (0.0, 1.0, 0.0)), ("c", 2, (0.5, 0.5, 0.0)))
    assert (found.wrong, found.n) == (4, 6)
    assert found.told.startswith("4 samples of 6 taken for another class, most often a for b (1 of 2)")


def test_an_attack_that_is_not_part_of_the_worst_case_is_left_out() -> None:
    (found,) = confusions(results("fgsm"), SampleEvidence(("a", "b", "c"), (samples(),)), ["pgd-at"])
    assert found.rows[0] == ("a", 2, (0.5, 0.5, 0.0))


def test_of_many_classes_the_most_frequent_confusions_are_told() -> None:
    label = np.repeat(np.arange(30), 2)
    before = np.where(np.arange(60) % 2 == 0, label, (label + 1) % 30)
    part = AttackedSamples("pgd-at", 0, np.arange(60), label, before == label, {"pgd": np.full(60, -1)}, before)
    (found,) = confusions(results("pgd"), SampleEvidence([f"c{k}" for k in range(30)], (part,)), ["pgd-at"])
    assert found.columns == found.rows == ()
    assert found.pairs[0].sentence == "c0 for c1 (1 of 2)"
    assert found.wrong == 30


def test_requests_have_no_confusion() -> None:
    asked = replace(samples(), before=None)
    assert confusions(results("fgsm"), SampleEvidence(("a",), (asked,)), ["pgd-at"]) == []


def test_the_norms_that_were_found_are_counted_over_all_samples() -> None:
    found = np.array([0.1, 0.1, 0.3, np.inf, np.nan, np.nan])
    evidence = SampleEvidence(("a", "b", "c"), (samples(norms={"cw": found}),), norm_names={"cw": "l2"})
    (drawn,) = norms(evidence, ["pgd-at"])
    assert drawn.x_label == "L2 of what was found"
    told = [dot.told for dot in drawn.lines[0].dots if not dot.told.endswith(": 0.0\N{NARROW NO-BREAK SPACE}%")]
    assert len(told) == 1  # 0.3 is the largest, above 99 %
    assert told[0].endswith(f"{100 * 2 / 6:.1f}\N{NARROW NO-BREAK SPACE}%")


def test_cost_is_on_a_scale_of_powers_of_ten_and_nothing_is_drawn_between() -> None:
    made = results("fgsm", "pgd")
    cheap, dear = ({"fgsm": (300, 300), "pgd": (30_000, 30_000)}[name] for name in ("fgsm", "pgd"))
    spent = {"fgsm": cheap, "pgd": dear}
    cells = [
        replace(cell, forward_passes=spent[cell.attack][0], backward_passes=spent[cell.attack][1])
        for cell in made.cells
        if cell.attack in spent
    ]
    drawn = strength(replace(made, cells=cells), ["pgd-at"])
    assert drawn is not None
    assert [tick.text for tick in drawn.x_ticks] == ["1", "10", "100", "1000"]
    (line,) = drawn.lines
    assert [round(dot.x, 1) for dot in line.dots] == [10.0, 76.7]  # 2 and 200 passes a sample, between 1 and 1000
    assert "L" not in line.path
    assert line.dots[1].told.startswith("pgd: 200 passes a sample, 81.0")


def test_one_attack_has_no_chart_of_its_cost() -> None:
    made = results("pgd")
    assert strength(replace(made, cells=[cell for cell in made.cells if cell.attack == "pgd"]), ["pgd-at"]) is None


@pytest.fixture
def followed() -> Results:
    made = results("pgd")
    trace = Trace("pgd", 16, [1, 20, 40], [-0.9, -0.2, -0.1], "the rescaled margin")
    finding = Finding("incomplete-optimisation", "warning", False, trace=trace)
    return replace(made, defenses=[replace(one, checks=[finding]) for one in made.defenses])


def test_the_course_of_a_search_is_drawn_and_survives_json(followed: Results) -> None:
    drawn = convergence(followed, ["standard", "pgd-at"])
    assert drawn is not None
    assert [line.label for line in drawn.lines] == ["pgd-at"]
    assert drawn.lines[0].colour == 1  # the second defense's in every chart
    told = [dot.told for dot in drawn.lines[0].dots]
    assert told == [
        "pgd, after 1 points: -0.9",
        "pgd, after 20 points: -0.2",
        "pgd, after 40 points: -0.1",
    ]
    again = Results.from_dict(followed.to_dict())
    assert again.defenses[0].checks[0].trace == followed.defenses[0].checks[0].trace
    without = campaign((0,)).to_dict()["defenses"][0]["checks"][0]
    assert "trace" not in without  # as former versions wrote it


def test_the_course_on_each_sample_is_drawn_in_the_defense_s_colour(followed: Results) -> None:
    trace = Trace("pgd", 2, [1, 20, 40], [-0.9, -0.2, -0.1], "the margin", [7, 111], [[-1.0, -0.3, -0.2], [-0.8, -0.1, 0.1]])
    finding = Finding("incomplete-optimisation", "warning", False, trace=trace)
    made = replace(followed, defenses=[replace(one, checks=[finding]) for one in followed.defenses])
    (drawn,) = convergence_by_sample(made, ["standard", "pgd-at"])
    assert (drawn.title, [line.label for line in drawn.lines]) == ("pgd-at", ["#7", "#111"])
    assert {line.colour for line in drawn.lines} == {1}
    assert [dot.told for line in drawn.lines for dot in line.dots] == [
        "pgd, after 40 points: -0.2",
        "pgd, after 40 points: 0.1",
    ]
    (own,) = sample_course(made.defenses[0], 111).lines
    assert [dot.told.split(": ")[1] for dot in own.dots] == ["-0.8", "-0.1", "0.1"]
    assert sample_course(made.defenses[0], 8) is None
    assert Results.from_dict(made.to_dict()).defenses[0].checks[0].trace == trace
    assert convergence_by_sample(followed, ["pgd-at"]) == []  # a result of a former version
    assert not {"samples", "paths"} & followed.to_dict()["defenses"][0]["checks"][0]["trace"].keys()


def test_a_trace_from_a_stranger_is_drawn_as_far_as_it_is_one(followed: Results) -> None:
    broken = Trace("pgd", 16, [1, 20, 40, 60], [-0.9, math.inf, -0.1], "the rescaled margin")
    finding = Finding("incomplete-optimisation", "warning", False, trace=broken)
    drawn = convergence(replace(followed, defenses=[replace(one, checks=[finding]) for one in followed.defenses]), ["pgd-at"])
    assert drawn is not None
    assert [dot.told for dot in drawn.lines[0].dots] == ["pgd, after 1 points: -0.9", "pgd, after 40 points: -0.1"]


def test_the_page_has_the_charts_and_a_link_to_each(followed: Results, tmp_path) -> None:
    found = np.array([0.1, 0.1, 0.3, 0.2, np.nan, np.nan])
    evidence = SampleEvidence(("a", "b", "c"), (samples(norms={"cw": found}),), norm_names={"cw": "l2"})
    page = write_report(followed, tmp_path, evidence=evidence).html.read_text(encoding="utf-8")
    for section, heading in (("searches", "Did the search converge?"), ("confusion", "Confusion under attack")):
        assert f'<a href="#{section}">' in page
        assert f'<section id="{section}">' in page
        assert heading in page
    assert "Cost by strength" in page
    assert "Distribution of the smallest norms" in page
