"""In l1 a step moves few pixels, and on ordinary images many are black or white already: a step spent on those leads nowhere.

On a linear network the best perturbation is known: pixels are moved to their bound in the order of their weights, until the budget
is spent. What it breaks can be broken, and nothing else.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustkd import plugins
from robustkd.attacks.image.engine.ball import Ball
from robustkd.campaigns.file import spec
from robustkd.campaigns.file.campaign import Campaign
from robustkd.campaigns.plan import plan as planning
from robustkd.contracts import Batch, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.threat import Norm
from robustkd.targets import ClassifierTarget

EPS = 2.0


def linear_problem(count: int = 100, side: int = 16) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear network of two classes, images of which half the values are at a bound, their labels, and which can be broken."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 2)).eval()
    weight = torch.randn(side * side) * torch.rand(side * side) ** 3
    with torch.no_grad():
        network[1].weight.copy_(torch.stack([-weight, weight]) / 2)
        network[1].bias.zero_()
    images = (2 * torch.rand(count, 1, side, side) - 0.5).clamp(0, 1)
    margin = images.flatten(1) @ weight
    uphill = -margin.sign().unsqueeze(1) * weight
    order = weight.abs().argsort(descending=True)
    room = torch.where(uphill > 0, 1 - images.flatten(1), images.flatten(1))[:, order]
    moved = (EPS - (room.cumsum(1) - room)).clamp_min(0).minimum(room)
    return network, images, (margin > 0).long(), (moved * weight.abs()[order]).sum(1) > margin.abs()


def broken_by(name: str, params: dict[str, object]) -> tuple[int, int]:
    network, images, labels, breakable = linear_problem()
    target = ClassifierTarget(network, num_classes=2, input_shape=images.shape[1:])
    batch, threat = Batch(images, labels, torch.arange(len(images))), ThreatModel("l1", EPS)
    found = plugins.make("attacks", {"kind": name, **params}).run(target, batch, threat, SampleRng(0, batch.index))
    assert ((found.adversarial - images).flatten(1).abs().sum(1) <= EPS * (1 + 1e-6)).all()
    broken = network(found.adversarial).argmax(1) != labels
    assert not (broken & ~breakable).any()  # the closed form is right
    return int(broken.sum()), int(breakable.sum())


@pytest.mark.parametrize("name", ["pgd", "bim", "mi-fgsm", "ni-fgsm"])
def test_what_can_be_broken_is_broken(name: str) -> None:
    broken, breakable = broken_by(name, {"steps": 50})
    assert 50 < breakable < 100
    assert broken >= 0.95 * breakable


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_direction_has_unit_norm_and_moves_only_what_can_move(norm: Norm) -> None:
    images = linear_problem(count=8)[1]
    gradient = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    direction = Ball.around(images, EPS, norm, (0.0, 1.0)).steepest(gradient, images)
    order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm]
    torch.testing.assert_close(torch.linalg.vector_norm(direction.flatten(1), order, dim=1), torch.ones(8))
    assert ((direction == 0) | (direction.sign() == gradient.sign())).all()
    if norm == "l1":
        further = (images + 0.01 * direction.sign()).clamp(0, 1)
        assert ((further != images) == (direction != 0)).all()


def test_nothing_is_left_to_move() -> None:
    white = torch.ones(1, 1, 4, 4)
    assert not Ball.around(white, EPS, "l1", (0.0, 1.0)).steepest(white, white).any()


PGD_SPEC = {"kind": "pgd"}
ADAPTIVE = {"kind": "autoattack", "version": "adaptive"}


@pytest.mark.parametrize(
    ("use", "ordinary", "in_l1"),
    [
        (PGD_SPEC, "2", "2.2"),
        ({"kind": "ni-fgsm"}, "3", "3.2"),
        ({"kind": "eot", "attack": PGD_SPEC}, "1/2", "1/2.2"),
        ({"kind": "transfer", "surrogates": ["a"], "attacks": [PGD_SPEC, {"kind": "apgd-ce"}]}, "2/2/3", "2/2.2/3.2"),
        (ADAPTIVE, "5", "5.4"),
        ({"kind": "autoattack"}, "4", "4.3"),
        (
            {"kind": "apgd-ce"},
            "3",
            "3.2",
        ),  # it left these pixels out before; its projection is rounded otherwise, its start is another
        ({"kind": "smoothed-pgd"}, "1", "1.1"),
    ],
)
def test_numbers_of_the_former_steps_and_projection_count_in_other_norms_alone(
    use: dict[str, object], ordinary: str, in_l1: str
) -> None:
    attack = plugins.make("attacks", use)
    assert [attack.version_for(ThreatModel(norm, 0.1)) for norm in ("linf", "l2", "l1")] == [ordinary, ordinary, in_l1]


def test_an_attack_that_minimises_l1_counts_as_one_in_l1_under_every_threat_model() -> None:
    attack = plugins.make("attacks", {"kind": "fmn", "norm": "l1"})
    assert [attack.version_for(ThreatModel(norm, 0.1)) for norm in ("linf", "l1")] == ["2.1", "2.1"]


@pytest.mark.parametrize(("norm", "changes"), [("linf", False), ("l2", False), ("l1", True)])
def test_a_campaign_computes_again_what_stood_on_the_former_step(
    norm: Norm, changes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"""
version: 1
name: l1
data: {{name: digits}}
threat: {{norm: {norm}, eps: 0.5}}
defenses: {{plain: {{kind: standard, model: tiny-cnn}}, trained: {{kind: pgd-at, model: tiny-cnn}}}}
attacks: {{moves: {{kind: pgd}}, apgd: {{kind: apgd-ce}}}}
"""
    campaign = spec.from_text(text, "l1.yaml", tmp_path)
    now = identities(campaign)
    for group, kind in (("attacks", "pgd"), ("defenses", "pgd-at")):
        monkeypatch.setattr(plugins.load(group, kind), "revisions", {})
    former = identities(campaign)
    changed = {key for key in now if now[key] != former[key]}
    expected = {"train trained", "attack plain moves", "attack trained moves", "attack trained apgd"}
    assert changed == (expected if changes else set())


def identities(campaign: Campaign) -> dict[str, str]:
    plan = planning.build(campaign)
    trained = {f"train {cell.defense}": cell.id for cell in plan.of("train")}
    return trained | {f"attack {cell.defense} {cell.attack}": cell.id for cell in plan.of("attack")}
