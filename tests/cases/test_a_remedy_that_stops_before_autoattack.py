"""A thermometer-coded input: two short attacks that had broken nothing more ended the remedy at 20 % (truth 14 %), before AutoAttack."""

from itertools import product

import pytest

from robustkd.contracts import ThreatModel
from robustkd.evaluation.suite import StoppingRule, TargetDiagnostics, escalation


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    ("replaced", "agreement", "misleads"),
    product([(), ("floor",)], [None, 0.0, 0.9], [False, True]),
    ids=lambda each: str(each),
)
def test_no_remedy_ends_without_it(norm, replaced, agreement, misleads):
    stopping_rule, ran = StoppingRule(), []
    for spec in escalation(TargetDiagnostics(False, replaced, agreement, misleads), ThreatModel(norm, 0.5)):
        ran.append(spec["kind"])
        stopping_rule.note(spec["kind"] not in ("nes", "square", "distilled-surrogate"), broke=False)
        if stopping_rule.reached:
            break
    assert "autoattack" in ran
