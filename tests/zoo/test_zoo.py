"""The zoo: every control caught, no honest network flagged."""

import pytest
from controls import HONEST, POSITIVE
from zoo import confusion, passed, visit

QUICK = ("log-softmax head", "killed gradient", "attack: no clipping", "attack: last point", "standard")


def test_the_zoo_is_as_large_as_it_says():
    assert len(POSITIVE) >= 20
    assert len({control.kind for control in POSITIVE}) >= 7
    assert len(HONEST) >= 6


@pytest.mark.slow
def test_a_quick_visit():
    rows = visit([0], QUICK)
    assert {row.control.name for row in rows} == set(QUICK)
    assert passed(rows), confusion(rows)
    verdicts = {row.control.name: row.verdict for row in rows}
    assert verdicts["log-softmax head"] == "suspect"
    assert verdicts["attack: no clipping"] == "invalid"
    assert verdicts["standard"] == "credible"
    masked = next(row for row in rows if row.control.name == "killed gradient")
    assert masked.remedied < masked.robust_accuracy - 0.3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_whole_zoo(seed):
    rows = visit([seed])
    assert passed(rows), confusion(rows)
    assert all(row.verdict == "credible" for row in rows if row.control.kind == "honest"), confusion(rows)


@pytest.mark.slow
def test_honest_networks_pass_the_costly_checks_too():
    rows = visit([0], [control.name for control in HONEST], level="thorough", samples=16)
    assert passed(rows), confusion(rows)
