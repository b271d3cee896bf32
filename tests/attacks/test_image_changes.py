"""Rotations, flows and recolourings: rendered as other libraries do, searched as by brute force, and never taken at their word."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.attacks.image.transforms.stadv import roughness, roughness_gradient
from robustkd.contracts import Attack, AttackError, AttackResult, ColourBudget, FlowBudget, SpatialBudget, ThreatModel
from robustkd.contracts.image_changes import PARAMETERS, TransformBudget
from robustkd.contracts.image_changes.cieluv import luv_of_rgb, rgb_of_luv
from robustkd.contracts.random import SampleRng
from robustkd.evaluation.images import evaluate_attack
from robustkd.evaluation.judging import judge
from robustkd.plugin_kit import fixtures

SPATIAL, FLOW = SpatialBudget(30, 0.1), FlowBudget(0.3)
BUDGETS = [SPATIAL, SpatialBudget(30, 0.1, "edge"), FLOW, ColourBudget(0.2), ColourBudget(0.2, 4), ColourBudget(0.1, 4, "luv")]
OF_BUDGET = {"spatial": ("rotate-grid", "rotate-pgd"), "flow": ("stadv", "flow-search"), "colour": ("recolor", "colour-search")}
SHORT = {"flow-search": {"queries": 50}, "colour-search": {"queries": 50}, "rotate-grid": {"rotations": 5, "translations": 3}}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Three colour images, higher than wide."""
    return torch.rand((3, 3, 9, 7), generator=torch.Generator().manual_seed(0))


def parameters_of(budget: TransformBudget, images: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """(B, *) within the budget."""
    shape = (len(images), *budget.shape(tuple(images.shape[1:])))
    return budget.eps * (2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_parameters_of_zero_change_nothing_at_all(budget, images):
    none = torch.zeros_like(parameters_of(budget, images))
    assert torch.equal(budget.rendered(images, none), images)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_the_slope_of_the_rendering_is_that_of_its_differences(budget, images):
    images, parameters = images.double(), parameters_of(budget, images).double().requires_grad_()
    weights = torch.rand_like(images)
    (slope,) = torch.autograd.grad((weights * budget.rendered(images, parameters)).sum(), parameters)
    for row in range(3):
        place = (row, *(0 for _ in parameters.shape[1:]))
        moved = parameters.detach().clone()
        moved[place] += 1e-7
        difference = (weights * (budget.rendered(images, moved) - budget.rendered(images, parameters.detach()))).sum() / 1e-7
        assert float(slope[place]) == pytest.approx(float(difference), abs=1e-4)


def test_rotations_and_shifts_are_those_of_torchvision(images):
    functional = pytest.importorskip("torchvision.transforms.functional")
    shares = parameters_of(SPATIAL, images)
    made = SPATIAL.rendered(images, shares)
    for image, (angle, right, down), ours in zip(images, shares.tolist(), made, strict=True):
        # Its translation is in whole pixels: moved there by an affine grid of real numbers instead.
        theirs = functional.affine(
            image,
            30 * angle,
            [0.1 * 7 * right, 0.1 * 9 * down],
            1.0,
            [0.0],
            interpolation=functional.InterpolationMode.BILINEAR,
        )
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("budget", "mode"), [(SPATIAL, "grid-constant"), (replace(SPATIAL, padding="edge"), "nearest"), (FLOW, "nearest")]
)
def test_images_are_sampled_as_by_scipy(budget, mode, images):
    ndimage = pytest.importorskip("scipy.ndimage")
    parameters = parameters_of(budget, images)
    made = budget.rendered(images, parameters)
    rows, columns = np.mgrid[0:9, 0:7].astype(float)
    for image, given, ours in zip(images.numpy(), parameters.double().numpy(), made, strict=True):
        if isinstance(budget, FlowBudget):
            place = np.stack([rows + given[0], columns + given[1]])
        else:
            turned = math.radians(30 * given[0])
            turn = np.array([[math.cos(turned), -math.sin(turned)], [math.sin(turned), math.cos(turned)]])
            away = np.stack([rows - 4 - 0.1 * 9 * given[2], columns - 3 - 0.1 * 7 * given[1]])
            place = np.tensordot(turn, away, 1) + np.array([4, 3]).reshape(2, 1, 1)
        theirs = np.stack([ndimage.map_coordinates(channel, place, order=1, mode=mode) for channel in image])
        assert np.abs(ours.numpy() - theirs).max() < 1e-5


def test_colours_are_interpolated_as_by_scipy(images):
    interpolate = pytest.importorskip("scipy.interpolate")
    budget = ColourBudget(0.2, 4)
    moves = parameters_of(budget, images)
    made, axis = budget.rendered(images, moves), np.linspace(0, 1, 4)
    for image, given, ours in zip(images.numpy(), moves.numpy(), made, strict=True):
        values = given.reshape(3, 4, 4, 4).transpose(1, 2, 3, 0)
        moved = interpolate.RegularGridInterpolator((axis,) * 3, values)(image.transpose(1, 2, 0)).transpose(2, 0, 1)
        assert np.abs(ours.numpy() - np.clip(image + moved, 0, 1)).max() < 1e-5


def test_cieluv_is_that_of_the_tables():
    rgb = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).double()
    # As tabled for sRGB's primaries under D65, by the 2 degree observer.
    luv = [
        (100, 0, 0),
        (0, 0, 0),
        (53.2408, 175.0151, 37.7564),
        (87.7347, -83.0776, 107.3985),
        (32.2970, -9.4054, -130.3423),
    ]
    low, high = torch.tensor([0.0, -83.1, -134.2]).double(), torch.tensor([100, 175.1, 107.5]).double()
    found = luv_of_rgb(rgb) * (high - low) + low
    assert torch.allclose(found, torch.tensor(luv).double(), atol=0.03)
    axis = torch.linspace(0, 1, 18).double()
    every = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    coordinates = luv_of_rgb(every)
    assert -1e-6 <= float(coordinates.min()) <= float(coordinates.max()) <= 1 + 1e-6
    assert torch.allclose(rgb_of_luv(coordinates), every, atol=1e-5)


def test_lightness_alone_moves_a_grey_along_the_greys():
    grey = torch.full((1, 3, 2, 2), 0.4)
    budget = ColourBudget(0.1, 4, "luv")
    brighter = torch.zeros(1, *budget.shape((3, 2, 2)))
    brighter[:, 0] = 0.1
    made = budget.rendered(grey, brighter)
    assert float((made - made[:, :1]).abs().max()) < 1e-3
    y = ((0.4 + 0.055) / 1.055) ** 2.4
    lighter = ((116 * y ** (1 / 3) - 16 + 10 + 16) / 116) ** 3  # L* + 10
    assert float(made.mean()) == pytest.approx(1.055 * lighter ** (1 / 2.4) - 0.055, abs=1e-3)
    assert ColourBudget(0.1).measure == "colour(resolution=16)"
    assert ThreatModel.stored(*budget.stored).budget == budget


def test_pixels_of_one_colour_get_one_colour():
    grey = torch.tensor([0.2, 0.7, 0.2, 0.2, 0.7, 0.7]).view(1, 1, 2, 3)
    budget = ColourBudget(0.3)
    made = budget.rendered(grey, parameters_of(budget, grey)).flatten()
    assert len(made.unique()) == 2
    assert ((made - grey.flatten()).abs() <= 0.3).all()


def test_the_grid_finds_what_every_transform_of_the_grid_tried_in_turn_finds():
    target, threat = fixtures.classifier(), ThreatModel(budget=SpatialBudget(20, 0.1))
    batch = fixtures.batch(target)
    outcome = evaluate_attack(
        target, plugins.make("attacks", {"kind": "rotate-grid", "rotations": 5, "translations": 3}), batch, threat
    ).outcome
    margins = []
    for angle in np.linspace(-1, 1, 5):
        for right in (-1, 0, 1):
            for down in (-1, 0, 1):
                shares = torch.tensor([[angle, right, down]], dtype=torch.float32).expand(len(batch), -1)
                with torch.no_grad():
                    logits = target(SpatialBudget(20, 0.1).rendered(batch.inputs, shares))
                own = logits.gather(1, batch.labels.unsqueeze(1)).squeeze(1)
                margins.append(logits.scatter(1, batch.labels.unsqueeze(1), -torch.inf).amax(1) - own)
    best = torch.stack(margins).amax(0).numpy()
    assert outcome.success.sum() > 0
    assert (outcome.success == (outcome.correct & (best > 0))).all()
    left = outcome.standing
    assert np.allclose(outcome.loss[left], best[left], atol=1e-5)


def test_the_gradient_finds_no_more_than_a_fine_grid_and_nearly_as_much():
    target, threat = fixtures.classifier(), ThreatModel(budget=SpatialBudget(12, 0.06))
    batch = fixtures.batch(target)
    fine = {"kind": "rotate-grid", "rotations": 25, "translations": 13}
    grid, climb = (
        evaluate_attack(target, plugins.make("attacks", spec), batch, threat).outcome for spec in (fine, {"kind": "rotate-pgd"})
    )
    assert not (climb.success & ~grid.success).any()
    left = grid.standing
    assert (climb.loss[left] <= grid.loss[left] + 0.2).all()
    assert climb.success.sum() >= grid.success.sum() - 1


def test_more_draws_break_what_fewer_do_and_the_control_is_one():
    target, threat = fixtures.classifier(), ThreatModel(budget=SPATIAL)
    batch = fixtures.batch(target)

    def broken(draws: int) -> np.ndarray:
        outcome = evaluate_attack(
            target, plugins.make("attacks", {"kind": "rotate-grid", "draws": draws}), batch, threat
        ).outcome
        assert outcome.forwards.max() <= draws
        return outcome.success

    one, ten = broken(1), broken(10)
    assert not (one & ~ten).any()
    assert one.sum() < ten.sum()


@pytest.mark.parametrize("budget", [SPATIAL, FLOW, ColourBudget(0.2, 4)], ids=str)
def test_a_larger_budget_breaks_no_less(budget):
    target = fixtures.classifier()
    batch = fixtures.batch(target)
    for kind in OF_BUDGET[budget.kind]:
        attack = plugins.make("attacks", {"kind": kind, **SHORT.get(kind, {})})
        counts = [
            int(
                evaluate_attack(
                    target, attack, batch, ThreatModel(budget=replace(budget, eps=share * budget.eps))
                ).outcome.success.sum()
            )
            for share in (0.0, 0.3, 1.0, 2.0)
        ]
        assert counts[0] == 0
        assert counts == sorted(counts)
        assert counts[-1] > 0


class _Cheat(Attack):
    """Returns what its ``how`` says of the parameters and the images."""

    space = "spatial"

    def __init__(self, how, budget) -> None:
        super().__init__()
        self.how, self.space = how, budget.kind

    def run(self, target, batch, threat, rng):
        budget = threat.budget
        parameters = torch.zeros((len(batch), *budget.shape(tuple(batch.inputs.shape[1:]))))
        images, parameters = self.how(budget, batch.inputs, parameters)
        none = torch.zeros(len(batch), dtype=torch.int64)
        extras = {} if parameters is None else {PARAMETERS: parameters}
        return AttackResult(images, none.bool(), none, none, extras=extras)


def _beyond(budget, clean, parameters):
    parameters = parameters + 3 * budget.eps
    return budget.rendered(clean, parameters), parameters


def _another_image(budget, clean, parameters):
    return (clean + 0.01).clamp(0, 1), parameters


def _no_number(budget, clean, parameters):
    return clean.clone(), parameters * torch.nan


def _unsaid(budget, clean, parameters):
    return clean.clone(), None


@pytest.mark.parametrize("budget", [SPATIAL, FLOW, ColourBudget(0.2)], ids=str)
@pytest.mark.parametrize(
    ("how", "told"),
    [(_beyond, "left its budget"), (_another_image, "distance inf"), (_no_number, "distance"), (_unsaid, "it returned none")],
)
def test_an_attack_that_cheats_gives_no_number(budget, how, told):
    target, threat = fixtures.classifier(), ThreatModel(budget=budget)
    with pytest.raises(AttackError, match=told):
        evaluate_attack(target, _Cheat(how, budget), fixtures.batch(target), threat)


@pytest.mark.usefixtures("no_remedies")
def test_a_sample_a_little_beyond_the_budget_is_not_broken_and_the_audit_names_it():
    """Of eleven samples one: fewer than a tenth, so the attack is not refused as a whole."""
    target = fixtures.classifier()
    batch = fixtures.batch(target)
    batch = batch.select(torch.arange(10).repeat(2))
    batch = replace(batch, index=torch.arange(20))
    straight = plugins.make("attacks", {"kind": "rotate-grid"}).run(
        target, batch, ThreatModel(budget=SPATIAL), SampleRng(0, batch.index)
    )
    assert straight.success[3]

    def further(budget, clean, parameters):
        parameters = straight.extras[PARAMETERS].clone()
        parameters[3] *= 1.1 / parameters[3].abs().max()
        return budget.rendered(clean, parameters), parameters

    outcome = judge(
        target,
        cheat := _Cheat(further, SPATIAL),
        batch,
        ThreatModel(budget=SPATIAL),
        cheat.run(target, batch, ThreatModel(budget=SPATIAL), None),
    )
    assert outcome.distance[3] == pytest.approx(1.1)
    assert not outcome.success[3]
    assert outcome.success[13]
    report = robustkd.audit(target, batch.inputs, batch.labels, attacks=cheat, budget=SPATIAL)
    audit = next(finding for finding in report.findings if finding.name == "threat-model-audit")
    assert audit.fired
    assert audit.evidence["left_budget"] == {cheat.name: [3]}


def test_a_smooth_flow_is_smoother():
    target = fixtures.classifier()
    batch = fixtures.batch(target)

    def found(tau: float) -> AttackResult:
        attack = plugins.make("attacks", {"kind": "stadv", "tau": tau, "stop_when_broken": False})
        return attack.run(target, batch, ThreatModel(budget=FLOW), SampleRng(0, batch.index))

    assert roughness(found(0.5).extras[PARAMETERS]).mean() < 0.8 * roughness(found(0.0).extras[PARAMETERS]).mean()


def test_the_slope_of_the_roughness_is_that_of_its_differences():
    flow = torch.rand((1, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope, moved = roughness_gradient(flow), flow.clone()
    moved[0, 1, 2, 2] += 1e-6
    assert float(slope[0, 1, 2, 2]) == pytest.approx(float(roughness(moved) - roughness(flow)) / 1e-6, abs=1e-4)


def test_a_network_that_looks_at_the_mean_colour_is_recoloured_as_far_as_the_budget_goes():
    """A linear network of the mean: the best function moves every colour by eps, so which samples fall is known."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        net[2].bias.copy_(torch.tensor([0.5, -0.5]))  # class 1 above a mean of 0.5
    x = (
        0.2
        + 0.1 * torch.rand((8, 1, 5, 5), generator=torch.Generator().manual_seed(0))
        + 0.03 * torch.arange(8).view(8, 1, 1, 1)
    )
    found = robustkd.attack("recolor", net, x, torch.zeros(8, dtype=torch.int64), budget=ColourBudget(0.15))
    assert (found.success == (x.mean((1, 2, 3)) + 0.15 > 0.5).numpy()).all()
    assert 0 < found.success.sum() < 8


@pytest.mark.parametrize("rotations", [5, 7])
def test_the_grid_finds_at_least_what_foolboxs_does_with_the_same_queries(rotations):
    foolbox = pytest.importorskip("foolbox")
    target, data = fixtures.classifier(), fixtures.digits().train
    x, y = torch.from_numpy(data.unit()[:60]), torch.from_numpy(data.labels[:60])
    viewed = foolbox.PyTorchModel(target.module.eval(), bounds=(0, 1), device="cpu")
    peer = foolbox.attacks.SpatialAttack(max_translation=1, max_rotation=20, num_translations=3, num_rotations=rotations)
    _, _, theirs = peer(viewed, x, y)
    report = robustkd.attack(
        {"kind": "rotate-grid", "rotations": rotations, "translations": 3},
        target,
        x,
        y,
        budget=SpatialBudget(rotation=20, translation=1 / 8),
    )
    ours = torch.from_numpy(report.outcome.success | ~report.outcome.eligible)
    assert int(report.outcome.forwards.max()) <= 9 * rotations
    assert int(ours.sum()) >= int(theirs.sum()) > 0
    assert float((ours == theirs).double().mean()) >= 0.9
