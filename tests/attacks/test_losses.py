"""The losses that attacks climb, against double precision and against where float32 leaves the peers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import robustkd
from robustkd.attacks.image.engine.losses import Loss, cross_entropy
from robustkd.attacks.image.engine.objective import _GRADIENTS, bound
from robustkd.attacks.image.engine.oracle import ObjectiveWithGradient, finite
from robustkd.contracts import AttackError, TargetError


def value_and_slope(loss, logits, labels):
    logits = logits.clone().requires_grad_()
    value = loss(logits, labels)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def in_double(logits, labels):
    """p_j of the others and minus their sum, with nothing subtracted from 1."""
    z, own = logits.double(), labels.unsqueeze(1)
    slope = z.softmax(1).scatter(1, own, 0.0)
    u = z.scatter(1, own, -torch.inf).logsumexp(1) - z.gather(1, own).squeeze(1)
    return torch.logaddexp(u, torch.zeros_like(u)), slope.scatter(1, own, -slope.sum(1, keepdim=True))


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from([2, 3, 10, 100]), st.floats(0.01, 30), st.sampled_from([torch.float32, torch.float64])
)
def test_cross_entropy_is_the_usual_one(seed, classes, scale, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(12, classes, generator=generator, dtype=dtype)
    labels = torch.randint(classes, (12,), generator=generator)
    value, slope = value_and_slope(cross_entropy, logits, labels)
    usual, usual_slope = value_and_slope(lambda z, y: F.cross_entropy(z.double(), y, reduction="none"), logits, labels)
    assert value.dtype == slope.dtype == dtype
    torch.testing.assert_close(value, usual.to(dtype), rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(slope, usual_slope.to(dtype), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("gap", [0.0, 10.0, 17.0, 30.0, 60.0, 80.0])
def test_a_sure_answer_keeps_its_gradient(gap):
    logits = torch.tensor([[gap, 0.0, -1.0], [-1.0, gap, 0.3]])
    labels = torch.tensor([0, 1])
    value, slope = value_and_slope(cross_entropy, logits, labels)
    true_value, true_slope = in_double(logits, labels)
    torch.testing.assert_close(slope.double(), true_slope, rtol=1e-5, atol=0)
    if gap <= 30:  # beyond, the value is below what double precision tells from 0
        torch.testing.assert_close(value.double(), true_value, rtol=1e-2, atol=0)
    if gap >= 17:
        _, usual = value_and_slope(lambda z, y: F.cross_entropy(z, y, reduction="none"), logits, labels)
        own = usual.gather(1, labels.unsqueeze(1)).squeeze(1)
        assert ((own - true_slope.gather(1, labels.unsqueeze(1)).squeeze(1)).abs() > 0.05 * value).all()  # why it is not taken


@pytest.mark.parametrize("kind", ["fgsm", "bim", "mi-fgsm", "apgd-ce"])
def test_attacks_break_a_sure_network_that_leaves_peers_without_a_gradient(kind):
    torchattacks = pytest.importorskip("torchattacks")
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    with torch.no_grad():  # logits 0 and w: only the label's own weight says where to go
        net[1].weight[0] = 0
        net[1].weight[1] = 5 * torch.randn(48, generator=torch.Generator().manual_seed(0))
        net[1].bias.zero_()
    x = torch.full((8, 3, 4, 4), 0.5) + 0.05 * torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    weight = net[1].weight[1].detach()
    with torch.no_grad():
        net[1].bias[1] = 40 - net(x)[:, 1].min()
    y = net(x).argmax(1)
    assert (y == 1).all()
    needed = (net(x)[:, 1] / weight.abs().sum()).max().item()
    assert needed < 0.4  # within the pixel range
    found = robustkd.attack(kind, net, x, y, eps=1.01 * needed)
    assert found.success.all()
    peers = torchattacks.PGD(net, eps=1.01 * needed, alpha=needed / 4, steps=20, random_start=False)(x, y)
    assert (net(peers).argmax(1) == y).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("loss", _GRADIENTS)
def test_a_closed_form_is_the_gradient_of_its_loss(loss: Loss, classes: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, classes, generator=generator, dtype=dtype) * torch.logspace(-2, 2, 40).unsqueeze(1).to(dtype)
    logits[:4, 1] = logits[:4, 0]  # classes that are level
    wanted = torch.randint(classes, (40,), generator=generator)
    of_loss, leaf = bound(loss, wanted), logits.clone().requires_grad_()
    assert isinstance(of_loss, ObjectiveWithGradient)
    try:
        values = of_loss(leaf, torch.arange(40))
    except AttackError:
        with pytest.raises(AttackError, match="classes"):
            of_loss.value_and_grad(logits, torch.arange(40))
        return
    (expected,) = torch.autograd.grad(values.sum(), leaf)
    found, slope = of_loss.value_and_grad(logits, torch.arange(40))
    near = {"rtol": 1e-5 if dtype == torch.float32 else 1e-12, "atol": 1e-7}
    torch.testing.assert_close(found, values.detach(), **near)
    torch.testing.assert_close(slope, expected, **near)


def test_large_logits_are_finite_though_their_sum_is_not():
    logits = torch.full((2, 3), 3e38)
    assert finite(logits, logits) is logits
    with pytest.raises(TargetError, match="1 of 2"):
        finite(torch.tensor([[torch.inf, -torch.inf], [1.0, 2.0]]), logits)
