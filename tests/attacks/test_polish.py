"""Polish against every activation pattern of a tiny network, and where gradients lead away from the only way out."""

import itertools

import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import robustkd
from robustkd.contracts import AttackError

FEW = {"starts": 2, "steps": 10, "targets": 2}


def tiny(seed, hidden=(4, 3)):
    torch.manual_seed(seed)
    first, second = hidden
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 3)
    ).double()


def exhaustive(net, x, label, eps):
    """The highest z_t - z_y over the box, for any wrong class t: a linear program for each pattern of the ReLUs."""
    _, one, _, two, _, three = (part for part in net)
    low, high = (x - eps).clamp(0, 1).flatten(), (x + eps).clamp(0, 1).flatten()
    best = -torch.inf
    for pattern in itertools.product([0.0, 1.0], repeat=one.out_features + two.out_features):
        first, second = torch.tensor(pattern[: one.out_features]), torch.tensor(pattern[one.out_features :])
        w1, b1 = one.weight.detach(), one.bias.detach()
        w2, b2 = two.weight.detach() * first @ w1, two.weight.detach() * first @ b1 + two.bias.detach()
        w3, b3 = three.weight.detach() * second @ w2, three.weight.detach() * second @ b2 + three.bias.detach()
        signs = 1 - 2 * torch.tensor(pattern)
        a, b = signs.unsqueeze(1) * torch.cat([w1, w2]), -signs * torch.cat([b1, b2])
        for wrong in {0, 1, 2} - {label}:
            found = linprog(
                -(w3[wrong] - w3[label]).numpy(),
                A_ub=a.numpy(),
                b_ub=b.numpy(),
                bounds=list(zip(low.tolist(), high.tolist(), strict=True)),
            )
            if found.status == 0:
                best = max(best, -found.fun + float(b3[wrong] - b3[label]))
    return best


def loss_of(net, found, label):
    """The margin at what an attack returned."""
    logits = net(torch.as_tensor(found.adversarial).double()).detach()[0]
    own = logits[label].clone()
    logits[label] = -torch.inf
    return float(logits.max() - own)


@pytest.mark.parametrize("seed", range(4))
def test_with_every_relu_free_it_is_the_optimum_over_all_patterns(seed):
    net = tiny(seed)
    x = torch.rand(1, 1, 1, 3, dtype=torch.float64)
    label = net(x).argmax(1)
    for eps in (0.05, 0.3):
        optimum = exhaustive(net, x, int(label), eps)
        found = robustkd.attack("polish", net, x, label, eps=eps, params={**FEW, "free": 7})
        assert bool(found.success) == (optimum > 0)
        if optimum <= 0:  # nothing leaves early
            assert loss_of(net, found, label) == pytest.approx(optimum, abs=1e-4)


def misleading():
    """z_1 - z_0 rises slowly to the left of the clean image, not far enough; and steeply on the right, from 0.69 on."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[-1.0, 0.0], [20.0, 0.0]]))
        net[1].bias.copy_(torch.tensor([0.7, -13.8]))
        net[3].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        net[3].bias.copy_(torch.tensor([0.45, 0.0]))
    return net


def test_it_finds_what_gradients_lead_away_from():
    net = misleading()
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    assert net(x).argmax(1).equal(y)
    assert not robustkd.attack("pgd", net, x, y, eps=0.22, steps=100).success.any()
    assert robustkd.attack("polish", net, x, y, eps=0.22, params={**FEW, "starts": 1, "free": 2}).success.all()
    assert not robustkd.attack("polish", net, x, y, eps=0.22, params={**FEW, "starts": 1, "rounds": 0}).success.any()


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 3)), "Sigmoid"),
        (nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 3)), "MaxPool2d"),
    ],
)
def test_a_network_that_it_cannot_write_down_is_refused_with_the_reason(odd, said):
    with pytest.raises(AttackError, match=said):
        robustkd.attack("polish", odd, torch.rand(1, 1, 2, 2), torch.tensor([0]), eps=0.1)


class Reshaping(nn.Module):
    """Convolutions, pooling, a sum of branches and a flattening by the batch's size."""

    def __init__(self):
        super().__init__()
        self.norm, self.one, self.two = nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.pool, self.last = nn.AvgPool2d(2), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.one((self.norm(x) - 0.1) / 0.5))
        x = nn.functional.relu(x + self.two(x))
        x = self.pool(x)
        return self.last(x.view(x.size(0), -1))


def test_the_rows_say_what_the_network_says():
    from robustkd.certification.mixed_integer.relu_network import ReluNetwork

    torch.manual_seed(0)
    net = Reshaping().double().eval()
    net.norm.running_mean.fill_(0.3)
    x = torch.rand(1, 4, 4, dtype=torch.float64)
    piece = ReluNetwork(net, "polish").near(x, x - 0.2, x + 0.2, 24)
    assert 0 < len(piece.free) <= 24
    values = torch.cat([torch.ones(1), x.flatten()])
    for function, lower, upper in piece.free:
        z = function @ values[: len(function)]
        assert lower <= z <= upper
        values = torch.cat([values, z.clamp_min(0).view(1)])
    assert torch.allclose(piece.outputs @ values, net(x.unsqueeze(0))[0])
    assert all(function @ values[: len(function)] >= 0 for function in piece.positive)
