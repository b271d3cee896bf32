"""A number behind which a strong attack has no result could only be lower: it does not hold, passes no gate and is no whole baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from robustkd.campaigns.comparison.gate import judge_gates
from robustkd.campaigns.comparison.snapshot import read
from robustkd.campaigns.file.document.document import GateSpec
from robustkd.scoring.holds import Standing, standings
from support.written_results import draw, write

Lost = list[tuple[str, str, int]]
EVERY: Lost = [(name, "margin", seed) for name in ("plain", "robust") for seed in (0, 1)]


def judged(folder: Path, lost: Lost, at_least: float) -> tuple[Standing, str, str]:
    """Whether the defense holds; the outcome of its gate, and why."""
    shares = {"plain": {"weak": 0.9, "margin": 0.1}, "robust": {"weak": 0.95, "margin": 0.6}}
    drawn = {(name, seed): draw(seed, **shares[name]) for name in shares for seed in (0, 1)}
    results = read(str(write(folder, drawn, lost=lost, undefended=["plain"], gates=[("robust", at_least)]))).results
    assert results is not None
    (gate,) = judge_gates([GateSpec(defense="robust", metric="robust_accuracy", at_least=at_least)], results)
    return standings(results)["robust"], gate.outcome, gate.why


@pytest.mark.parametrize(
    ("lost", "at_least", "holds", "outcome", "told"),
    [
        ([], 0.5, "yes", "passed", ""),
        ([("robust", "margin", 1)], 0.5, None, "not judged", "no number of margin (seed 1)"),
        ([("robust", "margin", 0), ("robust", "margin", 1)], 0.5, None, "not judged", "no number of margin (seeds 0, 1)"),
        (EVERY, 0.5, None, "not judged", "no number of margin (seeds 0, 1)"),
        (EVERY, 0.99, "no", "failed", ""),  # it fails already, and could only be lower
        ([("robust", "margin", 1)], 0.75, None, "not judged", "no number of margin (seed 1)"),  # inconclusive till then
        ([("robust", "margin", 1), ("robust", "weak", 1)], 0.5, None, "not judged", "seed 1"),  # no number at all
        ([("plain", "margin", 0)], 0.5, None, "passed", "plain (undefended)"),  # the gate is about the defense alone
    ],
)
def test_does_it_hold_and_does_it_pass(tmp_path, lost, at_least, holds, outcome, told):
    standing, judgement, why = judged(tmp_path / "r", lost, at_least)
    assert (standing.holds, judgement) == (holds, outcome)
    assert told in standing.why
    assert judgement == "passed" or told in why


def test_a_baseline_that_lacks_an_attack_is_written_and_says_so(tmp_path: Path, say: Callable[..., tuple[int, str]]) -> None:
    drawn = {("robust", 0): draw(0, weak=0.9, margin=0.5)}
    write(tmp_path / "whole", drawn)
    write(tmp_path / "lost", drawn, lost=[("robust", "margin", 0)])
    assert say("gate", "whole", "--write-baseline", "a.json")[0] == 0
    code, told = say("gate", "lost", "--write-baseline", "b.json")
    assert (code, "robust: no number of margin (seed 0)" in told) == (5, True)
    assert say("gate", "lost", "--write-baseline", "b.json", "--allow-missing")[0] == 0
