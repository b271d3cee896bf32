"""Threat models that say where an image may change: fixed regions under every norm, and attacks with a patch."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd import plugins
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.patch.placement import promising_places
from robustkd.contracts import Attack, AttackError, AttackResult, Batch, Target, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.contracts.region import Channels, Mask, Patch, Region, extent, rectangles, region_of, stored_region
from robustkd.evaluation.images import evaluate_attack, make_batch, with_clean_logits
from robustkd.targets import ClassifierTarget

SHAPE = (2, 6, 7)
EYE = np.eye(6, 7)
PLAIN = {"random_start": False, "loss": "margin"}
REGIONS: list[dict[str, Any]] = [
    {"patch": 3, "place": "random"},
    {"patch": (2, 4), "place": (1, 2)},
    {"channels": [1]},
    {"mask": EYE},
]
RESPECTFUL = [
    {"kind": "fgsm", "loss": "margin"},
    {"kind": "bim", "loss": "margin"},
    {"kind": "pgd", "loss": "margin"},
    {"kind": "apgd-ce", "steps": 20},
    {"kind": "apgd-t", "steps": 20},
    {"kind": "mi-fgsm", "loss": "margin"},
    {"kind": "vmi-fgsm", "loss": "margin"},
    {"kind": "smoothed-pgd", "steps": 5},
    {"kind": "square", "queries": 60},
    {"kind": "autoattack", "steps": 5, "queries": 30},
    {"kind": "nes", "steps": 5},
    {"kind": "spsa", "steps": 5, "pairs": 8},
]


class Linear(nn.Module):
    """Two classes; class 1 wins where <w, x> + b > 0, which no image of the tests reaches."""

    def __init__(self, bias: float = -100.0) -> None:
        super().__init__()
        weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([-score / 2, score / 2], 1)


def images(n: int = 5) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1))


def gain(network: Linear, clean: Tensor, found: Tensor) -> Tensor:
    return ((found - clean) * network.weight).flatten(1).sum(1).detach()


def movable(where: Region, n: int = 5) -> Tensor:
    drawn = where.drawn(SHAPE, SampleRng(0, torch.arange(n), "where"))
    return drawn.expand(n, *SHAPE)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 0.5), ("l1", 2.0)])
@pytest.mark.parametrize("where", REGIONS, ids=lambda where: str(next(iter(where))) + str(where.get("place", "")))
@pytest.mark.parametrize("spec", RESPECTFUL, ids=lambda spec: spec["kind"])
def test_nothing_moves_outside(spec: dict[str, Any], where: dict[str, Any], norm: Any, eps: float) -> None:
    network, x = Linear(), images()
    params = {key: value for key, value in spec.items() if key != "kind"}
    report = robustkd.attack(
        spec["kind"], network, x, torch.zeros(5, dtype=torch.long), norm=norm, eps=eps, where=where, params=params
    )
    moved = (report.adversarial - x) != 0
    assert not (moved & ~movable(region_of(where))).any()
    assert moved.flatten(1).any(1).all()  # it was not only left alone


@pytest.mark.parametrize("where", REGIONS, ids=str)
def test_the_best_of_a_linear_network_has_a_closed_form(where: dict[str, Any]) -> None:
    network, x, eps = Linear(), images(), 0.3
    report = robustkd.attack("pgd", network, x, torch.zeros(5, dtype=torch.long), eps=eps, where=where, **PLAIN)
    w = network.weight
    room = torch.where(w > 0, (1 - x).clamp_max(eps), x.clamp_max(eps))
    best = (w.abs() * room * movable(region_of(where))).flatten(1).sum(1)
    torch.testing.assert_close(gain(network, x, report.adversarial), best.detach(), rtol=1e-4, atol=1e-5)
    # l2: along the gradient within the region, where no pixel reaches its bound
    middle = torch.full_like(x, 0.5)
    report = robustkd.attack("pgd", network, middle, torch.zeros(5, dtype=torch.long), norm="l2", eps=0.2, where=where, **PLAIN)
    length = (w * movable(region_of(where))).flatten(1).norm(dim=1)
    torch.testing.assert_close(gain(network, middle, report.adversarial), (0.2 * length).detach(), rtol=1e-4, atol=1e-5)


def best_over_places(network: Linear, x: Tensor, sides: tuple[int, int], eps: float) -> Tensor:
    """Exhaustive: for each place the sum over its pixels of what each brings."""
    w = network.weight
    each = (w.abs() * torch.where(w > 0, (1 - x).clamp_max(eps), x.clamp_max(eps))).sum(1).detach()
    height, width = sides
    places = itertools.product(range(SHAPE[1] - height + 1), range(SHAPE[2] - width + 1))
    return torch.stack([each[:, top : top + height, left : left + width].sum((1, 2)) for top, left in places], 1).amax(1)


@pytest.mark.parametrize("eps", [1.0, 0.3])
@pytest.mark.parametrize("size", [2, (3, 2), 0.2])
def test_patch_pgd_finds_the_best_place_of_a_linear_network(size: Any, eps: float) -> None:
    network, x = Linear(), images()
    report = robustkd.attack(
        "patch-pgd", network, x, torch.zeros(5, dtype=torch.long), eps=eps, where={"patch": size}, places=1, steps=10
    )
    best = best_over_places(network, x, Patch(size).sides(SHAPE), eps)
    torch.testing.assert_close(gain(network, x, report.adversarial), best, rtol=1e-4, atol=1e-5)


def shares_of_the_best(where: dict[str, Any], best: Tensor, attacks: dict[str, dict[str, Any]]) -> dict[str, float]:
    network, x, labels = Linear(), images(20), torch.zeros(20, dtype=torch.long)
    found = {
        name: robustkd.attack({"kind": name.split()[0], **params}, network, x, labels, where=where)
        for name, params in attacks.items()
    }
    shares = {name: gain(network, x, report.adversarial) / best for name, report in found.items()}
    assert all(bool((share <= 1 + 1e-5).all()) for share in shares.values())
    return {name: float(share.mean()) for name, share in shares.items()}


def test_searches_are_better_than_their_controls() -> None:
    shares = shares_of_the_best(
        {"patch": 2},
        best_over_places(Linear(), images(20), (2, 2), 1.0),
        {
            "patch-rs": {"queries": 1000},
            "patch-random": {"tries": 1000},
            "patch-pgd": {"places": 1},
            "patch-pgd at random": {"places": 1, "choice": "random"},
        },
    )
    assert shares["patch-rs"] > shares["patch-random"] + 0.05
    assert shares["patch-pgd"] > shares["patch-pgd at random"] + 0.2


def test_random_search_fills_a_given_place_as_well_as_it_can_be() -> None:
    x, w, at = images(20), Linear().weight, movable(Patch(2, (1, 3)), 20)
    best = (w.abs() * torch.where(w > 0, 1 - x, x) * at).flatten(1).sum(1).detach()
    shares = shares_of_the_best(
        {"patch": 2, "place": (1, 3)}, best, {"patch-rs": {"queries": 600}, "patch-random": {"tries": 600}}
    )
    assert shares["patch-rs"] > 0.99
    assert shares["patch-random"] < 0.9


def test_lavan_fills_its_place_as_well_as_that_place_allows() -> None:
    network, x = Linear(), images()
    where = {"patch": 3, "place": [2, 1]}
    report = robustkd.attack("lavan", network, x, torch.zeros(5, dtype=torch.long), where=where, steps=200)
    w = network.weight
    best = (w.abs() * torch.where(w > 0, 1 - x, x) * movable(region_of(where))).flatten(1).sum(1).detach()
    assert bool((gain(network, x, report.adversarial) > 0.95 * best).all())


def test_a_learnt_universal_patch_beats_a_random_one() -> None:
    network, x, labels = Linear(), images(30), torch.zeros(30, dtype=torch.long)
    gains = {
        epochs: gain(
            network,
            x,
            robustkd.attack(
                "universal-patch",
                network,
                x,
                labels,
                where={"patch": 3, "place": [1, 1]},
                fit_data=(images(60)[30:], labels),
                params={"epochs": epochs, "loss": "margin", "ceiling": None},
            ).adversarial,
        )
        for epochs in (0, 20)
    }
    w = network.weight
    at = movable(Patch(3, (1, 1)), 30)
    best = (w.abs() * torch.where(w > 0, 1 - x, x) * at).flatten(1).sum(1).detach()
    assert gains[20].mean() > 0.99 * best.mean()  # of a linear network the best patch is one for all images
    assert gains[0].mean() < 0.6 * best.mean()


class Cheat(Attack):
    """Changes the whole image; within eps, so that only the region is broken."""

    regions = ("given", "chosen")
    version = "1"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        found = 1 - batch.inputs
        count = torch.ones(len(batch), dtype=torch.int64)
        return AttackResult(found, count.bool(), count, count)


class OneCheat(Cheat):
    """Keeps to the threat model but for one sample of twenty, whose pixels it inverts."""

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        result = super().run(target, batch, threat, rng)
        own = (batch.index == 3).view(-1, 1, 1, 1)
        return replace(result, adversarial=torch.where(own, result.adversarial, batch.inputs))


@pytest.mark.parametrize("where", [*REGIONS, {"patch": 4}], ids=str)
def test_a_cheat_is_refused_by_the_judge(only_checks: Callable[..., None], where: dict[str, Any]) -> None:
    only_checks("threat-model-audit")
    network, x = Linear(0.0), images(20)
    labels = network(x).argmax(1)
    with pytest.raises(AttackError, match="changed pixels outside what may change on 20 of 20 samples"):
        robustkd.attack(Cheat(), network, x, labels, eps=1.0, where=where)
    report = robustkd.evaluate(network, x, labels, attacks=[OneCheat()], eps=1.0, where=where)
    assert report.robust_accuracy == 1.0  # the sample does not count as broken
    audit = next(finding for finding in report.findings if finding.name == "threat-model-audit")
    assert audit.fired
    assert audit.evidence["left_budget"] == {"OneCheat": [3]} or list(audit.evidence["left_budget"].values()) == [[3]]


def test_attacks_that_cannot_are_refused_with_the_reason() -> None:
    for kind in ("cw-l2", "fab", "universal", "diff-protect", "distilled-surrogate"):
        reason = plugins.make("attacks", {"kind": kind}).refusal(ThreatModel(where=Channels((0,))))
        assert "in channel 0" in str(reason), kind
    assert "cannot choose a place" in str(plugins.make("attacks", {"kind": "pgd"}).refusal(ThreatModel(where=Patch(2))))
    assert "needs a threat model with a patch" in str(plugins.make("attacks", {"kind": "patch-rs"}).refusal(ThreatModel()))
    assert "needs a threat model with a patch" in str(
        plugins.make("attacks", {"kind": "lavan"}).refusal(ThreatModel(where=Channels((0,))))
    )


def test_a_random_place_is_the_samples_own_and_the_same_for_all_attacks() -> None:
    where = Patch(2, "random")
    whole = where.drawn(SHAPE, SampleRng(5, torch.arange(40), "where"))
    part = where.drawn(SHAPE, SampleRng(5, torch.arange(10, 15), "where"))
    assert bool((whole[10:15] == part).all())
    assert len({tuple(place.flatten().tolist()) for place in whole}) > 10
    assert bool((whole.flatten(1).sum(1) == 4).all())
    batch = make_batch(images(), torch.zeros(5, dtype=torch.long)).placed(ThreatModel(where=where), 5)
    assert bool((batch.movable == whole[:5]).all())


def test_one_rectangle_of_the_size_and_no_more() -> None:
    where, difference = Patch((2, 3)), torch.zeros(4, *SHAPE)
    difference[0, 0, 1:3, 2:5] = 1  # as large as allowed
    difference[1, 0, 1:4, 2] = 1  # too high
    difference[2, 0, 0, 0], difference[2, 1, 1, 3] = 1, 1  # too wide, in two channels
    assert where.kept(difference, None).tolist() == [True, False, False, True]
    assert extent(torch.tensor([[False, True, False, True], [False] * 4])).tolist() == [3, 0]


def test_regions_are_stored_and_read_again() -> None:
    for where in (Patch(5), Patch((2, 3), "random"), Patch(0.1, (0, 1)), Channels((2, 0)), Mask.of(EYE, "eye.npy")):
        threat = ThreatModel("l2", 0.5, where=where)
        again = ThreatModel.stored("l2", 0.5, "untargeted", where.stored)
        assert (again, str(again), hash(again)) == (threat, str(threat), hash(threat))
    assert ThreatModel(where={"patch": 5}).eps == 1.0
    assert stored_region(None) is None
    for wrong in ({}, {"patch": 0}, {"patch": 2, "place": "here"}, {"channels": []}, {"mask": np.zeros((2, 2))}, {"top": 1}):
        with pytest.raises(UsageError):
            region_of(wrong)
    for where in (Patch(9), Patch(3, (5, 5)), Channels((2,)), Mask.of(np.ones((3, 3)))):
        with pytest.raises(UsageError):
            where.require_fits(SHAPE)


def test_a_mask_from_files(tmp_path: Any) -> None:
    from PIL import Image

    np.save(tmp_path / "m.npy", EYE)
    np.savez(tmp_path / "m.npz", EYE)
    Image.fromarray((255 * EYE).astype(np.uint8)).save(tmp_path / "m.png")
    masks = [Mask.read(tmp_path / f"m.{ending}") for ending in ("npy", "npz", "png")]
    assert len({mask.sha256 for mask in masks}) == 1
    with pytest.raises(UsageError, match=r"none\.npy.*cannot be read"):
        Mask.read(tmp_path / "none.npy")


def test_promising_places_are_apart() -> None:
    ball = Ball.around(torch.full((1, *SHAPE), 0.5), 0.1, "linf", (0.0, 1.0))
    gradient = torch.zeros(1, *SHAPE)
    gradient[0, 0, 1, 1], gradient[0, 0, 4, 5] = 2.0, 1.0
    first, second = promising_places(ball, gradient, (3, 3), 2)[0]
    assert rectangles(first.unsqueeze(0), (3, 3), SHAPE)[0, 0, 1, 1]
    assert rectangles(second.unsqueeze(0), (3, 3), SHAPE)[0, 0, 4, 5]


def test_curves_and_large_budgets_keep_to_the_region() -> None:
    network = Linear(0.0)
    x = images(20)
    target = ClassifierTarget(network.eval(), num_classes=2, input_shape=SHAPE)
    batch = with_clean_logits(target, make_batch(x, network(x).argmax(1)))
    threat = ThreatModel("linf", 0.5, where=Patch(3, "random"))
    found = evaluate_attack(target, plugins.make("attacks", {"kind": "pgd"}), batch, threat, curve=(0.1, 1.0))
    moved = (found.adversarial - x) != 0
    assert not (moved & ~batch.placed(threat, 0).movable).any()
