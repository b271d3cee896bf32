"""Networks and data at the edges of the contract, through the public interface."""

import numpy as np
import pytest
import torch
from torch import nn

import robustkd
from robustkd.contracts import TargetError

ATTACKS = {
    "fgsm": {},
    "bim": {"steps": 4},
    "pgd": {"steps": 4},
    "mi-fgsm": {"steps": 4},
    "apgd-ce": {"steps": 5},
    "apgd-t": {"steps": 5},
    "square": {"queries": 20},
    "autoattack": {"version": "adaptive", "steps": 10, "queries": 20},
}


def network(shape, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, classes)
    )


def images(shape, count=3):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ATTACKS)
def test_networks_of_other_precision(name, dtype):
    x = images((1, 9, 9), 6)
    net = network((1, 9, 9)).to(dtype)
    y = net(x.to(dtype)).argmax(1)
    found = robustkd.attack(name, net, x, y, eps=0.8, **ATTACKS[name])
    assert found.adversarial.dtype == torch.promote_types(x.dtype, dtype)
    assert (found.adversarial - x).abs().max() <= 0.8 + 1e-6
    assert np.array_equal(found.success, (net(found.adversarial.to(dtype)).argmax(1) != y).numpy())
    assert found.outcome.correct.all()


@pytest.mark.parametrize("name", ATTACKS)
def test_images_of_half_precision_are_the_same_images_in_single(name):
    x, net = images((1, 9, 9)).bfloat16(), network((1, 9, 9))
    y = net(x.float()).argmax(1)
    found, same = (robustkd.attack(name, net, given, y, eps=0.3, **ATTACKS[name]) for given in (x, x.float()))
    assert torch.equal(found.adversarial, same.adversarial)


@pytest.mark.parametrize("shape", [(1, 8, 13), (3, 17, 9), (3, 224, 224)])
@pytest.mark.parametrize("name", ATTACKS)
def test_images_of_any_shape(name, shape):
    x, net = images(shape, 1), network(shape, classes=2)
    found = robustkd.attack(name, net, x, net(x).argmax(1), eps=0.1, **ATTACKS[name])
    assert found.adversarial.shape == x.shape
    assert (found.adversarial - x).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_wrong_already_costs_nothing_and_is_no_success(name):
    x, net = images((1, 9, 9)), network((1, 9, 9))
    found = robustkd.attack(name, net, x, (net(x).argmax(1) + 1) % 3, eps=0.3, **ATTACKS[name])
    assert not found.success.any()
    assert not found.outcome.forwards.any()
    assert torch.equal(found.adversarial, x)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_network_in_training_mode_is_evaluated_and_left_as_it_was(name):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), nn.Linear(196, 3))
    x = images((1, 9, 9), 8)
    y = net.eval()(x).argmax(1)
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = robustkd.attack(name, net, x, y, eps=0.0, **ATTACKS[name])
    assert found.outcome.correct.all()
    assert not found.success.any()
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ATTACKS)
def test_a_nan_under_attack_is_an_error(name):
    class Broken(nn.Module):
        def forward(self, x):
            total = x.flatten(1).mean(1)
            return torch.stack([total, 0 * total], 1).masked_fill(x.amin() < 0.2, torch.nan)

    x = images((1, 9, 9)) / 2 + 0.4
    with pytest.raises(TargetError, match="NaN"):
        robustkd.attack(name, Broken(), x, torch.zeros(3).long(), eps=0.39, **ATTACKS[name])
