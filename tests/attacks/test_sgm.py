from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd.attacks.image.transferable.sgm import branch_ends
from robustkd.contracts import TargetError
from robustkd.models.resnet import PreActResNet18
from robustkd.models.resnet_cifar import ResNet20
from robustkd.models.torchvision_models import ResNet101
from robustkd.models.wide_resnet import WideResNet, WideResNetParams

GAMMA = 0.2


class Residual(nn.Module):
    """logits = A (x + B x), whose gradient is known in closed form."""

    class Block(nn.Module):
        branch_end = "branch"

        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(12, 12, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.block, self.head = nn.Flatten(), self.Block(), nn.Linear(12, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.flatten(x)))


@pytest.fixture
def network() -> Residual:
    torch.manual_seed(0)
    return Residual().double().eval()


def step(network: nn.Module, x: Tensor, y: Tensor, **params: object) -> Tensor:
    found = robustkd.attack("sgm", network, x, y, norm="l2", eps=0.01, seed=0, steps=1, **params)
    return (found.adversarial - x).flatten(1)


def test_one_step_is_along_the_gradient_with_fainter_branches(network: Residual) -> None:
    x = torch.full((4, 3, 2, 2), 0.5, dtype=torch.float64)
    x += 0.2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = network(x).argmax(1)
    head, branch = network.head.weight.detach(), network.block.branch.weight.detach()
    for gamma in (GAMMA, 1.0, 0.0):
        # Of two classes the cross entropy falls along the difference of their rows, whatever the logits are.
        slope = (head[1 - y] - head[y]) @ (torch.eye(12, dtype=torch.float64) + gamma * branch)
        wanted = 0.01 * slope / slope.norm(dim=1, keepdim=True)
        assert torch.allclose(step(network, x, y, gamma=gamma), wanted, atol=1e-8)


def test_branches_of_other_packages_are_named(network: Residual) -> None:
    x, y = torch.full((2, 3, 2, 2), 0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    declared = step(network, x, y, gamma=GAMMA)
    network.block.__class__ = type("Undeclared", (nn.Module,), {"forward": Residual.Block.forward})
    assert torch.equal(step(network, x, y, gamma=GAMMA, branches=("block.*",)), declared)
    with pytest.raises(TargetError, match="no block of it declares"):
        step(network, x, y)
    with pytest.raises(TargetError, match=r"no submodule matches nowhere"):
        step(network, x, y, branches=("nowhere",))


def test_the_network_answers_as_before_and_is_left_as_found() -> None:
    torch.manual_seed(0)
    network = ResNet20().build((3, 16, 16), 10).eval()
    x, y = torch.rand(4, 3, 16, 16), torch.randint(10, (4,))
    before = network(x)
    sgm = robustkd.attack("sgm", network, x, y, eps=8 / 255, steps=3)
    plain = robustkd.attack("sgm", network, x, y, eps=8 / 255, steps=3, gamma=1.0)
    assert torch.equal(network(x), before)
    assert not any(module._forward_hooks for module in network.modules())
    assert not torch.equal(sgm.adversarial, plain.adversarial)


def test_every_residual_architecture_declares_its_branches_beside_an_identity() -> None:
    built = {
        "resnet20": (ResNet20(), 7),
        "preact": (PreActResNet18(), 5),
        "wrn-10-1": (WideResNet(WideResNetParams(depth=10, width=1)), 1),
    }
    for name, (model, blocks) in built.items():
        assert len(branch_ends(model.build((3, 32, 32), 10))) == blocks, name


def test_torchvisions_too() -> None:
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        ends = branch_ends(ResNet101().build((3, 32, 32), 10))
    assert len(ends) == 29
    assert {end.num_features for end in ends} == {256, 512, 1024, 2048}
