"""Budgets in l1 on images of thousands of pixels, where the rounding of a sum is larger than it is on digits."""

import pytest
import torch
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.cascade import cascade
from robustkd.contracts import Attack, AttackError, AttackResult, Params, PromptAttack, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.evaluation.images import make_batch, with_clean_logits
from robustkd.targets import ClassifierTarget
from support.families import FAMILIES

QUICK = {
    "fgsm": {},
    "bim": {},
    "pgd": {"steps": 10},
    "mi-fgsm": {},
    "apgd-ce": {"steps": 10},
    "apgd-dlr": {"steps": 10},
    "apgd-t": {"steps": 5, "targets": 2},
    "smoothed-pgd": {"steps": 4, "neighbours": 2},
    "square": {"queries": 20},
    "nes": {"steps": 3, "pairs": 2},
    "spsa": {"steps": 3, "pairs": 2},
    "autoattack": {"version": "adaptive", "steps": 10, "queries": 20},
    "fmn": {"steps": 10},
    "fab": {"steps": 5},
    "ead": {"steps": 5, "binary_steps": 1},
    "ssa": {"steps": 3, "copies": 2},
    "pgn": {"steps": 3, "neighbours": 2},
    "bsr": {"steps": 3, "copies": 2},
    "vni-fgsm": {"steps": 3, "neighbours": 2},
    "ila": {"steps": 3},
    "admix": {"steps": 3, "mixed": 1, "copies": 2},
}


def network(channels=3, classes=10):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, classes)
    ).eval()


def images(side, count):
    """Noise, and plain ones, whose pixels are all rounded the same way."""
    noise = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    noise[::2] = torch.linspace(0.5, 0.9, len(noise[::2])).view(-1, 1, 1, 1)
    return noise


def spent(found, x):
    return (found.adversarial.double() - x.double()).flatten(1).abs().sum(1)


@pytest.mark.parametrize("eps", [1.0, 12.0])
@pytest.mark.parametrize("name", QUICK)
def test_every_attack_keeps_an_l1_budget(name, eps):
    net, x = network(), images(32, 16)
    y, fit_data = net(x).argmax(1), (x.flip(0), net(x.flip(0)).argmax(1))
    found = robustkd.attack(name, net, x, y, norm="l1", eps=eps, fit_data=fit_data, **QUICK[name])
    if plugins.load("attacks", name).kind == "fixed-budget":
        assert float(spent(found, x).max()) <= eps * (1 + 1e-6)


@pytest.mark.parametrize("side", [64, 224])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd-ce", "square"])
def test_so_do_they_on_larger_images(name, norm, side):
    net, x = network(), images(side, 2)
    eps = {"l1": 4.0, "l2": 0.5, "linf": 0.01}[norm]
    assert len(robustkd.attack(name, net, x, net(x).argmax(1), norm=norm, eps=eps, **QUICK[name]).success) == 2


@pytest.mark.parametrize("plain", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("eps", [0.5, 1.0, 12.0])
def test_a_projected_point_is_inside_as_it_is_stored(eps, plain):
    centre = torch.full((1, 3, 224, 224), plain)
    far = centre + 0.01 * torch.randn(centre.shape, generator=torch.Generator().manual_seed(0))
    for point in (far, centre + 0.01):
        x = Ball.around(centre, eps, "l1", (0.0, 1.0)).project(point)
        assert float((x.double() - centre.double()).abs().sum()) <= eps * (1 + 1e-6)


class Sloppy(Attack):
    """Adds the whole budget evenly and rounds to the nearest, as most people's attacks do."""

    Params = Params
    norms = ("l1",)

    def __init__(self, factor=1.0, rows=slice(None)):
        super().__init__()
        self.factor, self.rows = factor, rows

    def run(self, target, batch, threat, rng):
        x = batch.inputs
        step = torch.full_like(x, threat.eps / x[0].numel())
        step[self.rows] *= self.factor
        x = x + step
        none = torch.zeros_like(batch.labels)
        return AttackResult(x, torch.ones_like(none, dtype=torch.bool), none, none)


def test_an_even_perturbation_of_a_plain_image_is_inside():
    """All 3,072 pixels are rounded up."""
    net, x = network(), torch.full((4, 3, 32, 32), 0.7)
    found = robustkd.attack(Sloppy(), net, x, net(x).argmax(1), norm="l1", eps=0.5)
    assert float((spent(found, x) - 0.5).min()) > 6e-5


def breaking():
    """Two classes that differ by the mean pixel: an even perturbation upwards breaks everything."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([torch.full((3072,), -1.0), torch.full((3072,), 1.0)]))
        net[1].bias.copy_(torch.tensor([1.0, -1.0]) * (0.5 * 3072 + 0.25))
    return net


def test_one_sample_outside_costs_no_other_its_number(only_checks):
    only_checks("threat-model-audit")
    x = torch.full((64, 3, 32, 32), 0.5)
    y = torch.zeros(64, dtype=torch.long)
    report = robustkd.evaluate(breaking(), x, y, attacks=[Sloppy(1.5, slice(5, 6))], norm="l1", eps=1.0)
    assert report.robust_accuracy == 1 / 64  # that sample does not count as broken
    audit = next(finding for finding in report.findings if finding.name == "threat-model-audit")
    assert audit.fired
    assert audit.severity == "warning"
    assert audit.evidence["left_budget"] == {"Sloppy": [5]}


@pytest.mark.parametrize(("factor", "rows", "over"), [(1.01, slice(None), 64), (255.0, slice(None), 64), (3.0, slice(5, 6), 1)])
def test_an_attack_that_takes_another_budget_is_refused(factor, rows, over):
    x = torch.full((64, 3, 32, 32), 0.2)
    with pytest.raises(AttackError, match=f"left its budget on {over} of 64"):
        robustkd.attack(Sloppy(factor, rows), breaking(), x, torch.zeros(64, dtype=torch.long), norm="l1", eps=1.0)


def test_a_cascade_keeps_a_success_that_rounding_carried_over():
    x = torch.full((8, 3, 32, 32), 0.5)
    target = ClassifierTarget(breaking(), num_classes=2, input_shape=(3, 32, 32))
    batch = with_clean_logits(target, make_batch(x, torch.zeros(8, dtype=torch.long)))
    found = cascade([("sloppy", Sloppy())], target, batch, ThreatModel("l1", 0.5), SampleRng(0, batch.index))
    assert found.success.all()


def test_norms_that_no_attack_was_left_out_of():
    """The list above holds every attack that takes l1 and needs nothing but a network."""
    others = {
        "code",
        "eot",
        "bpda",
        "transfer",
        "sgm",
        "ni-fgsm",
        "si-fgsm",
        "ti-fgsm",
        "di2-fgsm",
        "vmi-fgsm",
        "fab-t",
        "no-attack",
        "unaware",
        "distilled-surrogate",
        "patch-pgd",
        *(
            "rotate-pgd",
            "stadv",
            "flow-search",
            "recolor",
            "colour-search",
            "perceptual-search",
        ),  # their budgets are no norms of pixels
    }
    for name in set(plugins.names("attacks")) - FAMILIES - others:
        kind = plugins.load("attacks", name)
        assert issubclass(kind, PromptAttack) or "l1" not in kind.norms or name in QUICK, name
