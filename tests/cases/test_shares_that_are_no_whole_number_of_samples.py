"""A model that draws random numbers withstands to a share of each sample: intervals are of the mean share, not of a rounded count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from robustkd.campaigns.comparison.gate import judge_gates
from robustkd.campaigns.comparison.snapshot import read
from robustkd.campaigns.file.document.document import GateSpec
from robustkd.reporting.summary import curve_of
from robustkd.scoring.intervals import share_interval
from robustkd.scoring.results import CurvePoint, DefenseResult, Results
from robustkd.scoring.summaries import DataSummary, ThreatSummary

HELD = np.array([0.5] * 9 + [1.0])  # 5.5 of 10 samples
LOW, HIGH = share_interval(HELD)
ROW = DefenseResult("mine", 0, "external", "done", "linf", 0.1, 10, 0.55, 0.55, LOW, HIGH, ["pgd"], draws=10)


def results(row: DefenseResult) -> Results:
    return Results("c", ThreatSummary("linf", 0.1), DataSummary("digits", 10), [], [row])


@pytest.mark.parametrize("metric", ["robust_accuracy", "clean_accuracy"])
def test_a_gate_between_the_ends_of_the_interval_is_inconclusive(metric):
    (gate,) = judge_gates([GateSpec(defense="mine", metric=metric, at_least=0.29)], results(ROW))
    assert (gate.ci_low, gate.ci_high) == pytest.approx((LOW, HIGH))
    assert gate.outcome == "inconclusive"


def test_the_curve_begins_with_the_interval_of_the_share():
    begun = curve_of(DefenseResult(**vars(ROW) | {"curve": [CurvePoint(0.1, 0.2, 0.1, 0.3)]}))
    assert (begun[0].ci_low, begun[0].ci_high) == pytest.approx((LOW, HIGH))


def test_a_comparison_of_numbers_alone_takes_the_share(tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(results(ROW).to_dict()))
    assert read(str(tmp_path)).rows["mine", "worst case", 0].share == pytest.approx(0.55)
