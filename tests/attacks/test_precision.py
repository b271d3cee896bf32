"""Gradients in bfloat16: what is taken in it, and that its rounding is never a success."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustkd


@pytest.fixture
def nearly_equal():
    """Logits of 100 and 100.2, which are one number in bfloat16; a change of every pixel by 0.05 makes them equal indeed."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[0.5], [-0.5]]).expand(2, 4))
        network[1].bias.copy_(torch.tensor([99.0, 101.2]))
    x = torch.full((3, 1, 2, 2), 0.5)
    return network, x, torch.ones(3, dtype=torch.int64)


def test_a_success_is_one_in_float32(nearly_equal):
    network, x, y = nearly_equal
    with torch.autocast("cpu", torch.bfloat16):
        assert (network(x).argmax(1) != y).all()  # what an attack would believe
    assert (network(x).argmax(1) == y).all()
    for name in ("fgsm", "pgd", "apgd-ce", "apgd-t"):
        short, enough = (robustkd.attack(name, network, x, y, eps=eps, precision="bf16") for eps in (0.045, 0.055))
        assert (short.robust_accuracy, enough.robust_accuracy) == (1.0, 0.0), name
        assert (network(enough.adversarial).argmax(1) != y).all()


def test_an_attack_goes_on_where_rounding_would_end_it(nearly_equal):
    network, x, y = nearly_equal
    found = robustkd.attack("bim", network, x, y, eps=0.055, steps=11, step_size=0.005, precision="bf16")
    assert found.robust_accuracy == 0
    assert (found.outcome.backwards >= 10).all()
    assert (found.outcome.forwards >= found.outcome.backwards + 10).all()  # each second look is counted


@pytest.mark.parametrize(
    ("name", "params", "lower"),
    [
        ("pgd", {"steps": 2}, True),
        ("eot", {"attack": {"kind": "pgd", "steps": 2}, "samples": 2}, True),
        ("apgd-t", {"steps": 2, "targets": 2}, True),
        ("autoattack", {"version": "rand", "steps": 2, "samples": 2}, False),  # the judge
        ("ddn", {"steps": 2}, False),  # looks for a distance: every digit counts
        ("square", {"queries": 5}, False),
        ("nes", {"steps": 2, "pairs": 2}, False),
    ],
)
def test_gradients_alone_are_taken_in_it(name, params, lower):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    seen = {True: set(), False: set()}
    network[1].register_forward_hook(lambda module, inputs, output: seen[output.requires_grad].add(output.dtype))
    x = torch.rand(4, 1, 4, 4)
    y = network(x).argmax(1)
    norm = "l2" if name == "ddn" else "linf"
    for precision, expected in (("full", {torch.float32}), ("bf16", {torch.bfloat16})):
        seen[True].clear()
        seen[False].clear()
        found = robustkd.attack(name, network, x, y, norm=norm, eps=0.01, precision=precision, **params)
        assert seen[False] == {torch.float32}
        assert seen[True] <= (expected if lower else {torch.float32})
        assert seen[True] or not lower
        assert found.adversarial.dtype == torch.float32


def test_it_finds_what_float32_finds():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    x = torch.rand(64, 1, 8, 8)
    y = network(x).argmax(1)
    standing = [
        robustkd.attack("apgd-ce", network, x, y, eps=0.02, steps=20, precision=precision).outcome.standing
        for precision in ("full", "bf16")
    ]
    assert 8 < standing[0].sum() < 56
    assert abs(int(standing[0].sum()) - int(standing[1].sum())) <= 2
