"""Weights laid out for the CPU while attacks run: the same answers, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd.contracts import TargetError
from robustkd.targets import ClassifierTarget
from robustkd.targets.layout import channels_last, to_channels_last

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="convolutions gain by oneDNN alone")

RGB = (3, 8, 8)


def convolutional(colours: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(colours, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, 4)
    ).eval()


class Viewing(nn.Module):
    """What much code for robust networks does: it takes the order in memory for granted."""

    def __init__(self, seen: list[tuple[int, ...]], colours: int = 3) -> None:
        super().__init__()
        self.body, self.head, self.seen = convolutional(colours)[:4], convolutional()[5], seen

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        self.seen.append(out.stride())
        return self.head(out.view(out.size(0), -1))


def images(count: int = 6, colours: int = 3) -> Tensor:
    return torch.rand(count, colours, *RGB[1:], generator=torch.Generator().manual_seed(1))


def strides(module: nn.Module) -> list[tuple[int, ...]]:
    return [part.weight.stride() for part in module.modules() if isinstance(part, nn.Conv2d)]


@pytest.mark.parametrize("colours", [1, 3])
def test_the_answers_are_the_same_and_come_from_the_other_order(colours: int) -> None:
    network = convolutional(colours)
    x = images(colours=colours)
    before = network(x)
    with channels_last(network):
        between = network[:4](x)
        after = network(x)
    assert between.stride(1) == 1  # channels are neighbours, for one colour too
    torch.testing.assert_close(after, before)


def test_weights_are_put_back_as_they_were() -> None:
    network = convolutional()
    before = [(id(weight), weight.data_ptr(), weight.stride(), weight.requires_grad) for weight in network.parameters()]

    def use() -> None:
        with channels_last(network):
            assert strides(network)[1] == (54, 1, 18, 6)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert [(id(w), w.data_ptr(), w.stride(), w.requires_grad) for w in network.parameters()] == before
    assert not any(vars(weight) for weight in network.parameters())


def test_the_inner_of_two_blocks_leaves_the_outer_ones_order() -> None:
    network = convolutional()
    with channels_last(network):
        laid = strides(network)
        with channels_last(network):
            assert strides(network) == laid
        assert strides(network) == laid


def test_a_convolution_that_two_members_share_is_put_back_once() -> None:
    network = convolutional()
    both = nn.ModuleList([network, nn.Sequential(network[0], nn.Flatten())])
    before = network[0].weight.data_ptr()
    with channels_last(both):
        assert network[0].weight.stride() == (27, 1, 9, 3)
    assert network[0].weight.data_ptr() == before


@pytest.mark.parametrize(
    "change", [lambda n: n.double(), lambda n: n.bfloat16(), torch.compile], ids=["f64", "bf16", "compiled"]
)
def test_where_nothing_is_gained_the_order_stays(change: Callable[[nn.Module], nn.Module]) -> None:
    network = change(convolutional())
    before = strides(network)
    with channels_last(network):
        assert strides(network) == before


@pytest.mark.parametrize("attack", ["pgd", "fab", "square"])
def test_an_attack_runs_in_it_and_leaves_nothing(attack: str) -> None:
    network = convolutional()
    found = []
    network[3].register_forward_hook(lambda _, inputs, output: found.append(output.stride(1)))
    before = strides(network)
    labels = network(images()).argmax(1)
    found.clear()
    robustkd.attack(attack, network, images(), labels, eps=0.05)
    assert set(found) == {1, 16}
    assert found.count(16) == 2  # how many classes there are, and what two images give before the attack
    assert strides(network) == before


def test_a_network_that_takes_the_order_for_granted_is_attacked_in_its_own() -> None:
    seen: list[tuple[int, ...]] = []
    network = Viewing(seen).eval()
    labels = network(images()).argmax(1)
    plain = nn.Sequential(*network.body, nn.Flatten(), network.head)
    found = robustkd.attack("pgd", network, images(), labels, eps=0.05, steps=3)
    alike = robustkd.attack("pgd", plain, images(), labels, eps=0.05, steps=3)
    torch.testing.assert_close(found.adversarial, alike.adversarial)
    assert seen[-1][1] == 16  # in the end as it was written for
    assert strides(network)[1] == (54, 9, 3, 1)


def test_a_networks_own_error_is_still_its_own() -> None:
    network = convolutional()
    target = ClassifierTarget(network, num_classes=4, input_shape=RGB)
    with channels_last(network), pytest.raises(TargetError, match=r"on a batch of shape \(6, 2, 8, 8\): .*expected input"):
        target(images(colours=2))


def test_the_gradient_that_an_attack_sees_is_in_the_usual_order() -> None:
    network = convolutional()
    target = ClassifierTarget(network, num_classes=4, input_shape=RGB)
    x = images().requires_grad_()
    (plain,) = torch.autograd.grad(target(x).sum(), x)
    with channels_last(network):
        (laid,) = torch.autograd.grad(target(x).sum(), x)
    assert laid.view(len(x), -1).shape == (6, 192)  # would raise for another order
    assert x._backward_hooks is None
    torch.testing.assert_close(laid, plain)


@pytest.mark.parametrize("colours", [1, 3])
def test_for_good_only_where_the_network_can_do_with_it(colours: int) -> None:
    plain, viewing = convolutional(colours).train(), Viewing([], colours).train()
    assert to_channels_last(plain, images(2, colours))
    assert plain[3].weight.stride() == (54, 1, 18, 6)
    assert plain.training
    assert int(plain[1].num_batches_tracked) == 0
    assert not to_channels_last(viewing, images(2, colours))
    assert viewing.body[3].weight.stride() == (54, 9, 3, 1)
    viewing(images(2, colours))
