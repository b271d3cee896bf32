"""A random search over patches that asks about images which it knows spends its queries for nothing.

One proposal in eight had the colours that the pixel had already, and the search began with random pixels, not with corner colours: on a
CIFAR-10 network it left 39.2 % standing where its authors' code left 34.7 %.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd.data import SplitParams, load_splits
from support.published_networks import resnet20


class Listening(nn.Module):
    """Right whatever the image, and remembers every image that it is asked about while it is attacked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return torch.tensor([3.0, -1.0]).repeat(len(x), 1) + 0 * x.flatten(1).sum(1, keepdim=True)


def test_no_proposal_is_the_patch_that_is_there() -> None:
    network, x = Listening(), torch.full((1, 3, 4, 4), 0.5)
    robustkd.attack("patch-rs", network, x, torch.zeros(1, dtype=torch.long), where={"patch": 1, "place": (1, 2)}, queries=60)
    elsewhere = torch.ones(4, 4).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(0.0))
    patched = [
        image[:, 1, 2]
        for image in torch.cat(network.asked)
        if not ((image - x[0]) * elsewhere).any() and not torch.equal(image, x[0])
    ]
    first, others = patched[0], torch.stack(patched[1:])
    assert len(others) >= 59
    assert set(first.tolist()) <= {0.0, 1.0}
    assert (others != first).any(1).sum() >= 58  # one is the judge's


@pytest.mark.slow
@pytest.mark.shared_data
def test_it_leaves_no_more_standing_than_its_authors_search(shared_data: Path) -> None:
    """34.7 % over three seeds (benchmarks/results/strength-patch-rs.json)."""
    card = json.loads((shared_data / "networks" / "cifar10_resnet20.json").read_text())
    network = resnet20(shared_data, **card["normalisation"]).eval()
    test = load_splits("cifar10", {"root": str(shared_data / "cifar10")}, SplitParams(test=200)).test
    x, y = torch.as_tensor(test.unit()), torch.as_tensor(test.labels).long()
    found = [
        robustkd.attack("patch-rs", network, x, y, where={"patch": 3, "place": "worst"}, queries=200, seed=seed)
        for seed in range(3)
    ]
    assert sum(report.robust_accuracy for report in found) / 3 < 0.365
