"""Distribution matching: the losses by hand, their gradient, and what FYI and the augmentation may change."""

import numpy as np
import pytest
import torch
from torch import nn

from robustkd import plugins
from robustkd.condensers.engine.augmentation import ALL, Augmentation, draw
from robustkd.condensers.engine.distributions import class_means, discrepancy
from robustkd.condensers.engine.synthetic import SyntheticParams, shown
from robustkd.condensers.matching.datadam import DataDAM, DataDAMParams, attention
from robustkd.condensers.matching.dm import DM
from robustkd.plugin_kit import fixtures
from robustkd.targets import ClassifierTarget


class Linear(nn.Module):
    """f(x) = A x are the features, z = B f(x)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.last = nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.last(self.features(x.flatten(1)))


def matched(method, network, real, y, synthetic, y_syn):
    with torch.no_grad():
        known = method.compared(network, real)
    return discrepancy(known, y, method.compared(network, synthetic), y_syn, 2)


def test_dm_of_a_linear_network_has_its_closed_form_and_gradient():
    network = ClassifierTarget(Linear(), num_classes=2, input_shape=(1, 2, 2))
    real, y = torch.rand(6, 1, 2, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    synthetic, y_syn = torch.rand(3, 1, 2, 2, requires_grad=True), torch.tensor([0, 0, 1])
    loss = matched(DM(), network, real, y, synthetic, y_syn)
    a = network.module.features.weight.detach()
    apart = [a @ (real[y == c].mean(0) - synthetic.detach()[y_syn == c].mean(0)).flatten() for c in (0, 1)]
    assert torch.allclose(loss, sum(d.square().sum() for d in apart))
    (gradient,) = torch.autograd.grad(loss, synthetic)
    # d/dx_i || A (m - mean x) ||^2 = -2/n A^T A (m - mean x)
    wanted = torch.stack([-2 / n * a.T @ apart[c] for c, n in ((0, 2), (0, 2), (1, 1))])
    assert torch.allclose(gradient.flatten(1), wanted, atol=1e-6)


class TwoMaps(nn.Module):
    """Two ReLUs on maps: the first is compared, the last enters by the features alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.ReLU(), nn.ReLU(), nn.Linear(12, 2)

    def forward(self, x):
        maps = self.first(torch.cat([x, 2 * x, -x], 1))
        return self.last(self.second(maps).flatten(1))


def test_attention_is_what_the_definition_says_whatever_the_order_of_the_channels():
    maps = torch.randn(2, 3, 2, 2)
    wanted = maps.abs().pow(4).sum(1).flatten(1)
    assert torch.allclose(attention(maps, 4), wanted / wanted.norm(dim=1, keepdim=True))
    assert torch.allclose(attention(maps[:, [2, 0, 1]], 4), attention(maps, 4))
    assert torch.isfinite(attention(torch.zeros(1, 2, 2, 2), 1)).all()


def test_datadam_is_attention_and_last_features_with_their_weights():
    network = ClassifierTarget(TwoMaps(), num_classes=2, input_shape=(1, 2, 2))
    method = DataDAM(DataDAMParams(power=2, weight=3, balance=0.5))
    real, synthetic = torch.rand(2, 1, 2, 2), torch.rand(2, 1, 2, 2)
    y = torch.tensor([0, 1])
    loss = matched(method, network, real, y, synthetic, y)
    # Of a map (x, 2x, 0): the sum of squares is 5 x^2, whose direction is that of x^2.
    looks = [(5 * x.square()).flatten(1) for x in (real, synthetic)]
    looks = [look / look.norm(dim=1, keepdim=True) for look in looks]
    # The features are (x, 2x, 0): their squared difference is 5 times that of the pixels.
    wanted = 3 * ((looks[0] - looks[1]).square().sum() + 0.5 * 5 * (real - synthetic).square().sum())
    assert torch.allclose(loss, wanted)
    assert float(matched(method, network, real, y, real, y)) == 0


def test_means_are_of_each_class_and_zero_without_rows():
    table, labels = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 2])
    assert class_means(table, labels, 3).tolist() == [[2.0], [0.0], [5.0]]


def test_fyi_is_the_loss_of_the_images_with_their_mirror_images():
    network = ClassifierTarget(Linear(), num_classes=2, input_shape=(1, 2, 2))
    real, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 0, 1, 1])
    x, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    on, off = SyntheticParams(fyi=True), SyntheticParams()

    def loss(images, classes, params):
        return matched(DM(), network, real, y, *shown(images, classes, params))

    both, twice = torch.cat([x, x.flip(3)]), torch.cat([labels, labels])
    assert torch.allclose(loss(x, labels, on), loss(both, twice, off))
    assert torch.allclose(loss(x.flip(3), labels, on), loss(x, labels, on))
    assert not torch.allclose(loss(x, labels, on), loss(x, labels, off))


@pytest.mark.parametrize("change", ALL)
def test_a_change_is_the_same_for_every_image_has_a_gradient_and_keeps_the_shape(change):
    x = torch.rand(3, 2, 9, 8, requires_grad=True)
    augmented = Augmentation(change, (0.2, 0.9, 0.4))
    assert augmented(x).shape == x.shape
    assert torch.allclose(augmented(x[1:2]), augmented(x)[1:2], atol=1e-6)
    assert not torch.allclose(augmented(x), x)
    (gradient,) = torch.autograd.grad(augmented(x).square().sum(), x)
    assert (gradient != 0).any()


def test_neutral_numbers_change_nothing():
    x = torch.rand(2, 3, 8, 8)
    for change, draws in (
        ("colour", (0.5, 0.5, 0.5)),
        ("crop", (0.5, 0.5, 0)),
        ("scale", (0.5, 0.5, 0)),
        ("rotate", (0.5, 0, 0)),
    ):
        assert torch.allclose(Augmentation(change, draws)(x), x, atol=1e-5), change
    assert torch.equal(Augmentation(None)(x), x)
    assert draw((), torch.Generator()).change is None
    flipped = Augmentation("flip", (0.1, 0, 0))(x)
    assert torch.equal(flipped, x.flip(3))
    assert (Augmentation("cutout", (0.5, 0.5, 0))(x)[:, :, 2:6, 2:6] == 0).all()


@pytest.mark.parametrize("kind", ["dm", "datadam"])
def test_matching_brings_the_features_of_the_set_to_those_of_the_data(kind):
    """From noise: the loss falls, the images move, and stay images."""
    settings = {
        "kind": kind,
        "model": "small-cnn",
        "model_params": {"width": 4},
        "steps": 60,
        "images_per_class": 1,
        "start": "noise",
        "augment": (),
    }
    log = []
    settings |= {"lr": {"dm": 3.0, "datadam": 0.03}[kind]}
    defense = plugins.make("defenses", {"kind": "condensed-data", "condenser": settings})
    with fixtures.context(log=lambda epoch, metrics: log.append(metrics["matching_loss"])) as context:
        arrays = defense.fit(context).arrays
    assert np.mean(log[-4:]) < 0.75 * np.mean(log[:2])
    assert 0 <= arrays.images.min() < arrays.images.max() <= 1
