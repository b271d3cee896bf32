"""Minimum-norm attacks beside other packages' at equal budget, on the same samples of a network trained on digits.

Failures count as infinitely far, so that a median covers success too.
"""

import importlib
import sys
import types

import pytest
import torch
from torch import nn

from robustkd.contracts import Batch, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.plugins import load
from robustkd.scoring.distances import distance
from robustkd.targets import ClassifierTarget
from support.peers import trained_on_digits


@pytest.fixture(scope="module")
def digits():
    """A network in its training's rough shape, and 60 test images that it classifies rightly."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 10),
    ]
    return trained_on_digits(*layers, epochs=8)


def foolbox(name, **params):
    def attack(net, x, y):
        peer = pytest.importorskip("foolbox")
        return getattr(peer.attacks, name)(**params)(peer.PyTorchModel(net, (0, 1)), x, y, epsilons=None)[1]

    return attack


def torchattacks(name, **params):
    def attack(net, x, y):
        peer = pytest.importorskip("torchattacks", reason="torchattacks is not installed: robustkd doctor --fix")
        return getattr(peer, name)(net, **params)(x, y)

    return attack


def adv_lib(name, **params):
    def attack(net, x, y):
        pytest.importorskip("adv_lib")  # importing it takes ten seconds
        sys.modules.setdefault("visdom", types.SimpleNamespace(Visdom=None))  # for its plots
        return getattr(importlib.import_module("adv_lib.attacks"), name)(net, x, y, **params)

    return attack


def fab(norm):
    return torchattacks("FAB", norm=norm, eps=1e9, steps=20, n_restarts=1)


COMPARISONS = [
    ("cw-l2", {"steps": 50, "binary_steps": 5}, "l2", foolbox("L2CarliniWagnerAttack", steps=50, binary_search_steps=5)),
    ("cw-l2", {"steps": 50, "binary_steps": 5}, "l2", torchattacks("CW", steps=250)),
    ("cw-linf", {"steps": 400}, "linf", adv_lib("carlini_wagner_linf", max_iterations=20)),
    ("cw-linf", {"steps": 400}, "linf", foolbox("LInfFMNAttack", steps=400)),  # no peer that imports fast has this one
    ("ddn", {"steps": 50}, "l2", foolbox("DDNAttack", steps=50)),
    ("ddn", {"steps": 50}, "l2", adv_lib("ddn", steps=50)),
    ("fmn", {"steps": 50}, "linf", foolbox("LInfFMNAttack", steps=50)),
    ("fmn", {"steps": 50}, "l2", foolbox("L2FMNAttack", steps=50)),
    ("fmn", {"steps": 50}, "l1", foolbox("L1FMNAttack", steps=50)),
    ("fmn", {"steps": 50}, "l0", foolbox("L0FMNAttack", steps=50)),
    ("sigma-zero", {"steps": 100}, "l0", adv_lib("sigma_zero", num_steps=100)),
    ("fab", {"steps": 20}, "linf", fab("Linf")),
    ("fab", {"steps": 20}, "l2", fab("L2")),
    ("deepfool", {}, "linf", foolbox("LinfDeepFoolAttack")),
    ("deepfool", {}, "l2", foolbox("L2DeepFoolAttack")),
    ("deepfool", {}, "l2", torchattacks("DeepFool")),
    ("ead", {"steps": 50, "binary_steps": 5}, "l1", foolbox("EADAttack", steps=50, binary_search_steps=5, decision_rule="L1")),
    ("ead", {"steps": 50, "binary_steps": 5}, "l1", torchattacks("EADL1", max_iterations=50, binary_search_steps=5)),
]


def named(comparison):
    inside = comparison[3].__qualname__.split(".")[0]
    return f"{comparison[0]}-{comparison[2]}-{inside}"


@pytest.mark.parametrize(
    ("name", "params", "norm", "peer"),
    [
        pytest.param(*comparison, id=named(comparison), marks=[pytest.mark.slow] if "adv_lib" in named(comparison) else [])
        for comparison in COMPARISONS
    ],
)
@pytest.mark.slow
def test_at_least_as_near_as_the_peer(name, params, norm, peer, digits):
    net, x, y = digits
    theirs = peer(net, x, y).detach()
    plugin = load("attacks", name)
    batch = Batch(x, y, torch.arange(len(x)))
    target = ClassifierTarget(net, num_classes=10, input_shape=(1, 8, 8))
    found = plugin(plugin.Params(**params)).run(target, batch, ThreatModel(norm, 1.0), SampleRng(0, batch.index))
    ours = found.adversarial

    def lengths(adversarial):
        wrong = net(adversarial).argmax(1) != y
        return torch.where(wrong, distance(adversarial - x, norm), torch.inf)

    assert (lengths(ours).isfinite().sum() >= lengths(theirs).isfinite().sum()).item()
    assert lengths(ours).median() <= 1.01 * lengths(theirs).median()
