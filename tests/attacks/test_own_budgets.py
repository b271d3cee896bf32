"""A budget for each sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd.contracts import AttackError, DataError, UsageError
from robustkd.contracts.attack import Attack, AttackResult

FIXED = ["fgsm", "bim", "pgd", "mi-fgsm", "ni-fgsm", "si-fgsm", "apgd-ce", "apgd-t", "square", "nes", "autoattack"]
QUICK = {
    "square": {"queries": 60},
    "nes": {"steps": 5},
    "autoattack": {"queries": 60, "steps": 10},
    "fgsm": {},
    "apgd-t": {"steps": 10},
}


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear model, samples, and each sample's exact distance to its boundary in linf, which no pixel range cuts short."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    x = 0.5 + 0.02 * torch.randn(12, 1, 4, 4)
    weight, bias = net[1].weight.detach(), net[1].bias.detach()
    logits = x.flatten(1) @ weight.T + bias
    gap = logits[:, 0] - logits[:, 1]
    return net, x, logits.argmax(1), gap.abs() / (weight[0] - weight[1]).abs().sum()


@pytest.mark.parametrize("name", FIXED)
def test_exactly_the_samples_whose_own_budget_reaches_the_boundary_break(problem, name: str) -> None:
    net, x, y, distance = problem
    eps = distance * torch.where(torch.arange(12) % 2 == 0, 1.1, 0.9)  # every other one just beyond it
    found = robustkd.attack(name, net, x, y, eps=eps, **QUICK.get(name, {"steps": 10}))
    assert (torch.as_tensor(found.outcome.distance) <= eps + 1e-6).all()
    broken = torch.as_tensor(found.success)
    assert not broken[1::2].any()
    assert broken[::2].all() or name in ("square", "nes")  # random search need not get there in so few queries


@pytest.mark.parametrize("name", ["pgd", "square", "autoattack"])
def test_a_sample_is_attacked_as_if_its_budget_were_everybodys(problem, name: str) -> None:
    net, x, y, distance = problem
    eps = distance * torch.linspace(0.5, 1.5, 12)
    params = QUICK.get(name, {"steps": 10})
    together = robustkd.attack(name, net, x, y, eps=eps, **params)
    for row in (2, 9):
        alone = robustkd.attack(name, net, x, y, eps=float(eps[row]), **params)
        assert bool(alone.success[row]) == bool(together.success[row])
        if name != "autoattack":  # FAB stops at the budget only where it is the same for all
            torch.testing.assert_close(alone.adversarial[row], together.adversarial[row])


def test_an_attack_that_overspends_is_found_out(problem) -> None:
    net, x, y, _ = problem

    class Generous(Attack):
        def run(self, target, batch, threat, rng) -> AttackResult:
            moved = (batch.inputs + threat.eps).clamp(0, 1)
            none = torch.zeros(len(batch), dtype=torch.int64)
            return AttackResult(moved, torch.ones(len(batch), dtype=torch.bool), none, none)

    eps = torch.full((12,), 0.1)
    eps[3] = 0.02
    with pytest.raises(AttackError, match=r"left its budget on 1 of 12 samples: linf distance 0.1, allowed is 0.02"):
        robustkd.attack(Generous(), net, x, y, eps=eps)


def test_who_cannot_says_so(problem) -> None:
    net, x, y, _ = problem
    with pytest.raises(UsageError, match="one budget for all samples"):
        robustkd.attack("foolbox:LinfPGD", net, x, y, eps=torch.full((12,), 0.1))
    with pytest.raises(UsageError, match="one perturbation for all samples"):
        robustkd.attack("universal", net, x, y, eps=torch.full((12,), 0.1), fit_data=(x, y))
    with pytest.raises(DataError, match="budgets of shape"):
        robustkd.attack("pgd", net, x, y, eps=torch.full((3,), 0.1))
