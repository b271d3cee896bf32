"""Networks that torch has quantised or frozen: the number of the network that they were, or a sentence and no number."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd.contracts import TargetError


def plain() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / 2
    return net.eval()


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    x = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return x, plain()(x).argmax(1)


def test_an_int8_network_has_no_gradient_and_no_number_of_a_gradient_attack(samples: tuple[Tensor, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}, dtype=torch.qint8)
    for name in ("pgd", "fgsm", "apgd-ce", "deepfool"):
        with pytest.raises(TargetError, match="no gradient with respect to its input") as told:
            robustkd.attack(name, quantised, *samples, eps=0.2)
        assert "black-box" in (told.value.fix or "")
    assert robustkd.attack("square", quantised, *samples, eps=0.2, queries=50).robust_accuracy < 1


def test_a_frozen_script_has_the_numbers_of_its_network(samples: tuple[Tensor, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(torch.jit.script(plain()))
    for name in ("pgd", "square"):
        mine, its = (robustkd.attack(name, net, *samples, eps=0.2).success for net in (frozen, plain()))
        assert (mine == its).all()
