"""``mora`` holds an image where its members pull apart: which share of them breaks it depends on the ensemble, so restarts take several."""

import torch
from torch import nn

import robustkd
from robustkd.targets import ClassifierTarget, EnsembleTarget


def member(seed: int, weight: float, bias: float) -> ClassifierTarget:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    network[1].weight.data *= weight
    network[1].bias.data *= bias
    return ClassifierTarget(network.eval(), num_classes=4, input_shape=(1, 4, 4))


def test_a_second_attempt_breaks_what_another_share_of_the_members_breaks() -> None:
    target = EnsembleTarget([member(6, 4, 12), member(7, 8, 8)])
    torch.manual_seed(103)
    x = torch.rand(64, 1, 4, 4)
    y = target(x).argmax(1)

    def standing(**params: float) -> float:
        return robustkd.attack("mora", target, x, y, eps=0.2, steps=10, **params).robust_accuracy

    alone = standing(share=0.5)
    assert standing(share=0.9, restarts=2) > alone + 0.05
    assert standing(restarts=2) <= alone + 0.02
