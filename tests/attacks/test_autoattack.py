import pytest
import torch
from torch import nn

import robustkd
from robustkd.data import SplitParams, load_splits
from support.published_networks import adversarially_trained_lenet
from support.small_networks import Around, all_digits, learn

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def trained():
    """A small network on digits, and samples that it classifies rightly."""
    x, y = all_digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return learn(net, x[:1200], y[:1200]).eval(), x[1200:1260], y[1200:1260]


@pytest.mark.parametrize(("norm", "eps", "name"), [("linf", 0.06, "Linf"), pytest.param("l2", 0.35, "L2", marks=SLOW)])
@pytest.mark.slow
def test_no_sample_withstands_us_that_torchattacks_autoattack_breaks(trained, norm, eps, name):
    torchattacks = pytest.importorskip("torchattacks")
    net, x, y = trained
    found = robustkd.attack("autoattack", net, x, y, norm=norm, eps=eps, queries=1000)
    peer = torchattacks.AutoAttack(net, norm=name, eps=eps, version="standard", n_classes=10, seed=0)(x, y)
    theirs = (net(peer).argmax(1) == y) & (net(x).argmax(1) == y)
    standing = torch.as_tensor(found.outcome.standing)
    assert 0.1 < standing.float().mean() < 0.9
    assert standing.sum() <= theirs.sum()


@pytest.mark.slow
def test_it_is_at_least_as_strong_as_its_parts(trained):
    net, x, y = trained
    whole = robustkd.attack("autoattack", net, x, y, eps=0.06, queries=200).outcome.standing
    for part in ("apgd-ce", "apgd-t", "pgd"):
        assert not (whole & ~robustkd.attack(part, net, x, y, eps=0.06).outcome.standing).any()


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("autoattack", {}),
        ("autoattack", {"version": "adaptive"}),
        ("transfer", {"surrogates": ["itself"], "attacks": [{"kind": "pgd", "steps": 10}]}),
    ],
)
def test_rounding_beside_a_small_eps_takes_no_success_away(name, params):
    # From below 0.5 to above it, x + 1/255 is rounded by up to 7e-6 of 1/255. The full step, and only that, breaks these samples.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    x = 0.498 + 0.001 * torch.rand(12, 3, 8, 8)
    with torch.no_grad():  # each sample on the boundary, then a margin of 0.98 of what the full step takes away
        net[1].weight -= net[1].weight.mean(1, keepdim=True)
        slope = net[1].weight[0] - net[1].weight[1]
        x -= (x.flatten(1) @ slope / slope.square().sum()).view(-1, 1, 1, 1) * slope.view(3, 8, 8)
        net[1].bias.copy_(torch.tensor([0.98 / 255 * float(slope.abs().sum()), 0.0]))
    eps, y = 1 / 255, torch.zeros(12, dtype=torch.int64)
    assert 0.5 - eps < x.min() < x.max() < 0.5
    assert net(x).argmax(1).eq(y).all()
    found = robustkd.attack(name, net, x, y, eps=eps, models={"itself": net} if "surrogates" in params else None, **params)
    assert found.success.all()
    assert found.outcome.distance.max() > eps * (1 + 1e-6)


@pytest.mark.parametrize("version", ["standard", "plus", "rand", "adaptive"])
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_and_every_version(version, classes):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, classes))
    x = torch.rand(4, 1, 3, 3)
    found = robustkd.attack("autoattack", net, x, net(x).argmax(1), eps=1.0, version=version, steps=10, queries=50, samples=2)
    assert found.success.all()


# --- adaptive --------------------------------------------------------------------------------------------------------


def reaches(net, x, y, norm, eps, **params):
    """Standing under adaptive and under standard, and the share of the passes."""
    found = [
        robustkd.attack("autoattack", net, x, y, norm=norm, eps=eps, version=v, **params) for v in ("adaptive", "standard")
    ]
    passes = [int(report.outcome.forwards.sum() + report.outcome.backwards.sum()) for report in found]
    return *(int(report.outcome.standing.sum()) for report in found), passes[0] / passes[1]


BUDGETS = {"linf": 0.06, "l2": 0.35, "l1": 0.9}
FEWER = {"steps": 40, "queries": 1500}


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=SLOW), pytest.param("l1", marks=SLOW)])
@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.slow
def test_adaptive_comes_to_the_conclusion_of_standard_for_a_tenth_of_its_passes(trained, norm, scale):
    net, x, y = trained
    adaptive, standard, share = reaches(Around(net, behind=lambda z: scale * z), x[:20], y[:20], norm, BUDGETS[norm], **FEWER)
    assert 2 < standard < 18
    assert adaptive <= standard
    assert share < 0.3  # those that come near a goal are given APGD and Square in full


MASKS = {
    "quantised": lambda net: Around(net, before=lambda x: (7 * x).round() / 7 + 0 * x),
    "saturated": lambda net: Around(net, behind=lambda z: (1000 * z).softmax(1)),
    "of another function": lambda net: Around(net, behind=lambda z: z.detach() + z.flip(1) - z.flip(1).detach()),
}


@pytest.mark.parametrize("norm", ["linf", "l2", pytest.param("l1", marks=SLOW)])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.slow
def test_adaptive_does_not_fall_behind_where_gradients_mislead(trained, norm, mask):
    net, x, y = trained
    params = {"steps": 10, "queries": 300}
    adaptive, standard, _ = reaches(MASKS[mask](net), x[:20], y[:20], norm, 1.8 * BUDGETS[norm], **params)
    assert adaptive <= standard + 1


@pytest.mark.slow
def test_adaptive_reaches_given_classes_as_standard_does(trained):
    net, x, y = trained
    goals = (y + 1) % 10
    adaptive, standard, share = reaches(net, x[:20], y[:20], "linf", 0.12, goals=goals[:20])
    assert 2 < standard < 18
    assert adaptive <= standard
    assert share < 0.3  # those that come near a goal are given APGD and Square in full


@pytest.mark.slow
def test_adaptive_does_not_depend_on_the_batch(trained):
    net, x, y = trained
    masked = MASKS["saturated"](net)  # some samples doubted, some not
    whole, parts = (
        robustkd.attack("autoattack", masked, x, y, eps=0.15, version="adaptive", steps=10, queries=200, batch_size=size)
        for size in (60, 7)
    )
    assert (whole.success == parts.success).all()
    assert (whole.outcome.forwards == parts.outcome.forwards).all()
    assert torch.allclose(whole.adversarial, parts.adversarial, atol=1e-5)


def test_adaptive_spends_nothing_without_a_budget_or_on_what_is_wrong_already(trained):
    net, x, y = trained
    assert (robustkd.attack("autoattack", net, x, y, eps=0.0, version="adaptive").outcome.forwards == 0).all()
    wrong = (net(x).argmax(1) + 1) % 10
    assert (robustkd.attack("autoattack", net, x, wrong, eps=0.1, version="adaptive").outcome.forwards == 0).all()


@pytest.mark.slow
@pytest.mark.shared_data
def test_adaptive_on_a_network_whose_gradients_mislead(shared_data):
    net = adversarially_trained_lenet(shared_data)
    data = load_splits("mnist", {"root": str(shared_data / "mnist")}, SplitParams(test=20))
    adaptive, standard, share = reaches(net, data.test.unit(), data.test.labels, "linf", 0.3)
    assert adaptive <= standard
    assert share < 0.3  # those that come near a goal are given APGD and Square in full
