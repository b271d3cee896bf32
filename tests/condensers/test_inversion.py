"""Inversion: the statistics, the crops and their curriculum, and the curvature that GUARD takes away."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustkd import plugins
from robustkd.condensers.engine.inversion import Statistics, away, cropped, one_of_each, shifted
from robustkd.condensers.inversion.cda import CDAParams, curriculum
from robustkd.condensers.inversion.guard import CurvatureRecipe, SqueezeParams, curvature
from robustkd.contracts import UsageError
from robustkd.defenses.training import Minibatch, fresh_network, train
from robustkd.plugin_kit import fixtures
from robustkd.targets import ClassifierTarget

SQUEEZE = {"model_params": {"norm": "batch", "width": 8}, "epochs": 3, "batch_size": 20, "optimiser": "adam", "lr": 0.01}


def condensed(condenser, log=lambda epoch, metrics: None):
    with fixtures.context(log=log, targets={"net": fixtures.normalised()}) as context:
        return plugins.make("defenses", {"kind": "condensed-data", "condenser": condenser}).fit(context).arrays


def test_statistics_are_zero_where_they_are_the_running_ones_and_their_distance_elsewhere():
    x, layer = torch.randn(4, 2, 3, 3), nn.BatchNorm2d(2)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
    x.requires_grad_()
    same = away(layer, x)
    assert float(same) < 1e-5
    assert torch.isfinite(torch.autograd.grad(away(layer, x), x)[0]).all()
    layer.running_mean.copy_(mean + torch.tensor([3.0, 4.0]))
    assert float(away(layer, x)) == pytest.approx(5, abs=1e-4)


def test_the_first_layer_has_its_own_weight():
    first, second = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    module = nn.Sequential(first, second).eval()
    x = torch.randn(5, 1, 2, 2)
    with Statistics(module, 10) as statistics:
        module(x)
        found = statistics.taken()
    assert torch.allclose(found, 10 * away(first, x) + away(second, first(x)))


def test_the_curriculum_begins_with_whole_images_and_ends_at_the_milestone():
    params = CDAParams(network="net", steps=100, milestone=0.5)
    assert curriculum(0, params) == 1
    assert curriculum(25, params) == pytest.approx((1 + 0.08) / 2)
    assert curriculum(50, params) == pytest.approx(0.08)
    assert curriculum(99, params) == pytest.approx(0.08)


def test_a_crop_of_the_whole_image_is_the_image_and_a_shift_loses_nothing():
    x = torch.rand(2, 3, 8, 8)
    seen = [cropped(x, 1.0, torch.Generator().manual_seed(seed)) for seed in range(8)]
    close = [torch.allclose(each, x, atol=0.35) or torch.allclose(each, x.flip(3), atol=0.35) for each in seen]
    assert all(each.shape == x.shape for each in seen)
    assert any(close)
    moved = shifted(x, 2, torch.Generator().manual_seed(1))
    assert torch.equal(moved.flatten().sort().values, x.flatten().sort().values)
    assert torch.equal(shifted(x, 0, torch.Generator()), x)


def test_a_picture_has_one_image_of_each_class():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    pictures = one_of_each(labels)
    assert [labels[rows].tolist() for rows in pictures] == [[0, 1, 2], [0, 1], [0]]


def test_inverted_images_are_what_the_network_is_sure_about():
    still = {"kind": "cda", "network": "net", "images_per_class": 1, "r_bn": 0, "jitter": 0, "smallest_crop": 1.0}
    arrays, start = condensed(still | {"steps": 60, "lr": 0.1}), condensed(still | {"steps": 1, "lr": 1e-9})
    network = fixtures.normalised()

    def loss(made):
        with torch.no_grad():
            return float(F.cross_entropy(network(torch.from_numpy(made.images)), torch.from_numpy(made.labels)))

    assert loss(arrays) < 0.3 * loss(start)
    assert sorted(arrays.labels) == list(range(10))
    with torch.no_grad():
        assert np.allclose(arrays.soft, network(torch.from_numpy(arrays.images)).softmax(1), atol=1e-5)
    assert not hasattr(condensed(still | {"steps": 2, "labels": "hard"}), "soft")


def test_the_weight_of_the_statistics_brings_them_nearer():
    base = {"kind": "cda", "network": "net", "images_per_class": 1, "steps": 60, "lr": 0.1, "jitter": 0, "smallest_crop": 1.0}

    def distance(arrays):
        network = fixtures.normalised()
        network.module.eval()
        with torch.no_grad(), Statistics(network.module, 1) as statistics:
            network(torch.from_numpy(arrays.images))
            return float(statistics.taken())

    assert distance(condensed(base | {"r_bn": 1.0})) < 0.7 * distance(condensed(base | {"r_bn": 0}))


def test_a_network_without_statistics_is_refused_unless_they_do_not_count():
    with fixtures.context(targets={"net": fixtures.classifier()}) as context:
        made = {"kind": "cda", "network": "net", "steps": 2, "images_per_class": 1}
        with pytest.raises(UsageError, match="has no BatchNorm"):
            plugins.make("defenses", {"kind": "condensed-data", "condenser": made}).fit(context)
        plugins.make("defenses", {"kind": "condensed-data", "condenser": made | {"r_bn": 0}}).fit(context)


class Quadratic(nn.Module):
    """Two logits (q, 0) with q = x^T D x / 2."""

    def __init__(self, diagonal):
        super().__init__()
        self.diagonal = nn.Parameter(torch.tensor(diagonal))

    def forward(self, x):
        q = 0.5 * (x.flatten(1).square() * self.diagonal).sum(1)
        return torch.stack([q, torch.zeros_like(q)], 1)


def test_the_curvature_is_the_change_of_the_gradient_along_itself():
    target = ClassifierTarget(Quadratic([2.0, 5.0]), num_classes=2, input_shape=(1, 1, 2))
    x, y = torch.tensor([[0.3, -0.2], [0.1, 0.4]]).view(2, 1, 1, 2), torch.tensor([0, 1])

    def slope(at):
        at = at.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(target(at), y, reduction="none").sum(), at)[0]

    g = slope(x)
    z = g / g.flatten(1).norm(dim=1).view(2, 1, 1, 1)
    wanted = (slope(x.detach() + 0.5 * z) - g).flatten(1).norm(dim=1)
    assert torch.allclose(curvature(target, x, y, 0.5), wanted)


def test_the_curvature_is_weighed_and_without_weight_it_is_plain_training():
    target = ClassifierTarget(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), num_classes=2, input_shape=(1, 2, 2))
    batch = Minibatch(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1]), torch.arange(3), 0, 0)
    plain, _ = CurvatureRecipe(0, 1).loss(target, batch)
    assert torch.equal(plain, F.cross_entropy(target(batch.x), batch.y))
    curved, measured = CurvatureRecipe(7, 1).loss(target, batch)
    assert torch.allclose(curved, plain + 7 * measured["curvature"])
    gradient = torch.autograd.grad(curved, target.module[1].weight)[0]
    assert torch.isfinite(gradient).all()


def test_the_term_makes_the_network_that_guard_inverts_flatter():
    found = []
    for weight in (0.0, 8.0):
        with fixtures.context() as context:
            params = SqueezeParams(**SQUEEZE | {"epochs": 8, "selection": "last"})
            fresh = fresh_network(context, params.model, params.model_params, role="squeeze")
            network = train(context, fresh, CurvatureRecipe(weight, 0.6), params)
            x, y = torch.from_numpy(context.validation.unit()), torch.from_numpy(context.validation.labels)
            found.append(curvature(network, x, y, 0.6).mean().item())
    assert found[1] < 0.8 * found[0]


def test_infer_adds_one_perturbation_to_all_classes_of_a_picture_and_says_how_large_it_is():
    log = []
    made = {"kind": "infer", "networks": ["net"], "images_per_class": 2, "steps": 20, "lr": 0.02, "jitter": 0}
    arrays = condensed(made, log=lambda epoch, metrics: log.append(metrics))
    start = condensed({"kind": "random-subset", "images_per_class": 2})
    assert np.array_equal(arrays.labels, start.labels)
    moves = torch.from_numpy(arrays.images - start.unit())
    sizes = [metrics["perturbation_linf"] for metrics in log if "perturbation_linf" in metrics]
    assert len(sizes) == 2
    for rows, size in zip(one_of_each(torch.from_numpy(arrays.labels)), sizes, strict=True):
        low, high = torch.from_numpy(arrays.images)[rows] > 0, torch.from_numpy(arrays.images)[rows] < 1
        inside = low & high  # where nothing was cut off
        shared = torch.where(inside, moves[rows], torch.nan).nanmean(0)
        assert torch.allclose(torch.where(inside, moves[rows] - shared, 0.0), torch.zeros(()), atol=1e-5)
        assert 0 < moves[rows].abs().max() <= size + 1e-6
    assert (
        moves[one_of_each(torch.from_numpy(arrays.labels))[0]][0] != moves[one_of_each(torch.from_numpy(arrays.labels))[1]][0]
    ).any()


def test_infer_without_steps_worth_the_name_is_the_random_subset():
    still = condensed({"kind": "infer", "networks": ["net"], "images_per_class": 1, "steps": 1, "lr": 1e-9})
    assert np.allclose(still.images, condensed({"kind": "random-subset", "images_per_class": 1}).unit(), atol=1e-6)
