"""Our attacks against somebody else's figures, on the networks that these are about."""

import pytest
import torch

import robustkd
from robustkd.data import SplitParams, load_splits
from support.published_networks import adversarially_trained_lenet


@pytest.mark.slow
@pytest.mark.shared_data
def test_pgd_on_the_adversarially_trained_lenet(shared_data):
    """LinfPGD, eps 0.3, 40 steps of 0.01, no random start, 10,000 images: 6.8 % attack success (published with the network)."""
    net = adversarially_trained_lenet(shared_data)
    data = load_splits("mnist", {"root": str(shared_data / "mnist")}, SplitParams())
    found = robustkd.attack(
        "pgd", net, data.test.unit(), data.test.labels, eps=0.3, steps=40, step_size=0.01, random_start=False, batch_size=500
    )
    assert len(found.success) == 10_000
    # The published rate is over all images: those misclassified before the attack count as broken.
    broken = 1 - found.robust_accuracy
    assert broken == pytest.approx(0.068, abs=0.002)
    assert torch.is_tensor(found.adversarial)
