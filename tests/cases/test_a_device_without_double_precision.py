"""A device that has no float64, such as Apple's: what is on it cannot be made double, and nothing double can be made on it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import robustkd
from robustkd.attacks.image.engine import loss_gradients
from robustkd.attacks.image.engine.losses import cross_entropy

ATTACKS = {
    "fgsm": {},
    "pgd": {"steps": 5},
    "apgd-ce": {"steps": 5},
    "square": {"queries": 20},
    "autoattack": {"version": "adaptive", "steps": 5, "queries": 20},
    "spsa": {"steps": 3, "pairs": 2, "loss": "ce"},
    "cw-linf": {"steps": 5},
    "ddn": {"steps": 5},
    "fab": {"steps": 5},
    "fmn": {"steps": 5},
    "universal": {"epochs": 1},
}


class NoFloat64(TorchDispatchMode):
    """Refuses what such a device refuses. Tables that are made in float64 from nothing (``arange``) lie on the CPU there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64 and func.__name__.split(".")[0] in CASTS:
            raise TypeError("the device has no float64")
        return made


CASTS = ("_to_copy", "new_empty", "empty", "zeros_like", "new_zeros", "new_full")


@pytest.fixture(autouse=True)
def another_device(monkeypatch):
    """What is known of the CPU is not known of a device that has its name here."""
    monkeypatch.setattr(loss_gradients, "_widest_on", loss_gradients._widest_on.__wrapped__)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 4)).eval()
    x = torch.rand(8, 1, 8, 8)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_loss_has_a_gradient_there(problem, name):
    net, x, y = problem
    norm = "l2" if name == "ddn" else "linf"
    fit = (x, y) if name == "universal" else None
    there = robustkd.attack(name, net, x, y, norm=norm, eps=0.1, fit_data=fit, **ATTACKS[name])
    with NoFloat64():
        found = robustkd.attack(name, net, x, y, norm=norm, eps=0.1, fit_data=fit, **ATTACKS[name])
    assert np.array_equal(found.success, there.success)


def test_the_gradient_of_a_sure_network_keeps_its_digits_there():
    """Softmax minus one-hot in float32 has none left at a gap of 30; this form has, and the same signs everywhere."""
    torch.manual_seed(0)
    logits, labels = torch.randn(64, 10) * 3, torch.randint(10, (64,))
    logits[torch.arange(64), labels] += torch.linspace(0, 60, 64)

    def gradient(loss, z):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(loss(z, labels).sum(), z)[0].double()

    exact = gradient(cross_entropy, logits.double())
    with NoFloat64():
        leaf = logits.detach().requires_grad_()
        (found,) = torch.autograd.grad(cross_entropy(leaf, labels).sum(), leaf)
    found = found.double()
    assert torch.equal(found.sign(), exact.sign())
    assert float(((found - exact).norm(dim=1) / exact.norm(dim=1)).max()) < 1e-5
    torchs = gradient(lambda z, y: F.cross_entropy(z, y, reduction="none"), logits)
    assert float(((torchs - exact).norm(dim=1) / exact.norm(dim=1)).max()) > 1e-2
