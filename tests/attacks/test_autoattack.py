import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import robustkd


@pytest.fixture(scope="module")
def trained():
    """A small network on digits, and samples that it classifies rightly."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[:1200]), y[:1200]).backward()
        optimiser.step()
    return net.eval(), x[1200:1260], y[1200:1260]


@pytest.mark.parametrize(("norm", "eps", "name"), [("linf", 0.06, "Linf"), ("l2", 0.35, "L2")])
def test_no_sample_withstands_us_that_torchattacks_autoattack_breaks(trained, norm, eps, name):
    torchattacks = pytest.importorskip("torchattacks")
    net, x, y = trained
    found = robustkd.attack("autoattack", net, x, y, norm=norm, eps=eps, queries=1000)
    peer = torchattacks.AutoAttack(net, norm=name, eps=eps, version="standard", n_classes=10, seed=0)(x, y)
    theirs = (net(peer).argmax(1) == y) & (net(x).argmax(1) == y)
    standing = torch.as_tensor(found.outcome.standing)
    assert 0.1 < standing.float().mean() < 0.9
    assert standing.sum() <= theirs.sum()


def test_it_is_at_least_as_strong_as_its_parts(trained):
    net, x, y = trained
    whole = robustkd.attack("autoattack", net, x, y, eps=0.06, queries=200).outcome.standing
    for part in ("apgd-ce", "apgd-t", "pgd"):
        assert not (whole & ~robustkd.attack(part, net, x, y, eps=0.06).outcome.standing).any()


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_and_every_version(version, classes):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, classes))
    x = torch.rand(4, 1, 3, 3)
    found = robustkd.attack("autoattack", net, x, net(x).argmax(1), eps=1.0, version=version, steps=10, queries=50, samples=2)
    assert found.success.all()
