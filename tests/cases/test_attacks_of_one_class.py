"""Several attacks of one class in one ``evaluate`` or ``audit``: each has its own row, and the worst case is over all of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd.attacks.image.gradient.pgd import PGD
from robustkd.attacks.image.wrappers.eot import EOT
from robustkd.contracts import Attack


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear net, and images that one small step breaks only in part: 40 steps break more of them."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(10, 64, generator=generator), torch.rand(32, 1, 8, 8, generator=generator)
    linear = nn.Linear(64, 10, bias=False)
    linear.weight.data = weight - weight.mean(1, keepdim=True)
    net = nn.Sequential(nn.Flatten(), linear).eval()
    with torch.no_grad():
        return net, x, net(x).argmax(1)


STRONG, WEAK = {"steps": 40, "step_size": 0.01}, {"steps": 1, "step_size": 0.001}


def pgd(**params: object) -> PGD:
    return PGD(PGD.Params(**params))


def test_objects_keep_their_own_rows(case):
    report = robustkd.evaluate(*case, attacks=[pgd(**STRONG), pgd(**WEAK)], eps=0.02, level="none")
    strong, weak = report.attacks["pgd(steps=40, step_size=0.01)"], report.attacks["pgd(steps=1, step_size=0.001)"]
    assert strong.robust_accuracy + 0.2 < weak.robust_accuracy
    assert report.robust_accuracy == strong.robust_accuracy
    assert str(report).count("pgd(steps=") == 2


def test_equal_ones_are_numbered(only_checks, case):
    only_checks("threat-model-audit")
    same = {"kind": "pgd", **WEAK}
    report = robustkd.audit(*case, attacks=["fgsm", "fgsm", same, dict(same), pgd(**WEAK)], eps=0.02)
    label = "pgd(steps=1, step_size=0.001)"
    assert list(report.attacks) == ["fgsm", "fgsm #2", label, f"{label} #2", f"{label} #3"]


def test_a_parameter_that_is_an_attack_reads_like_one(case):
    around = EOT(EOT.Params(attack={"kind": "pgd", "steps": 2}, samples=2))
    report = robustkd.evaluate(*case, attacks=[around, EOT()], eps=0.02, level="none")
    assert list(report.attacks) == ["eot(attack=pgd(steps=2), samples=2)", "eot"]


class Own(Attack):
    """Holds what it is in a way of its own, as an attack that somebody writes for one defense does."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.inner = pgd(steps=steps, step_size=0.01)

    def run(self, target, batch, threat, rng):
        return self.inner.run(target, batch, threat, rng)


def test_attacks_of_ones_own_without_parameters(case):
    report = robustkd.evaluate(*case, attacks=[Own(40), Own(1)], eps=0.02, level="none")
    assert list(report.attacks) == ["Own", "Own #2"]
    assert report.robust_accuracy == report.attacks["Own"].robust_accuracy < report.attacks["Own #2"].robust_accuracy


def test_a_label_does_not_depend_on_what_was_loaded_before():
    code = """
import torch, robustkd
from robustkd.attacks.image.gradient.pgd import PGD
class Mine(PGD): pass
x = torch.rand(4, 1, 2, 2)
call = lambda: list(robustkd.evaluate(torch.nn.Flatten(), x, x.flatten(1).argmax(1), attacks=[PGD(), Mine()], eps=.1, level="none").attacks)
first = call()
robustkd.attack("pgd", torch.nn.Flatten(), x, x.flatten(1).argmax(1))
print(first, call())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "['pgd', 'Mine'] ['pgd', 'Mine']"
